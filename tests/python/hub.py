"""The part of the Hugging Face Hub that an upload asks for, on loopback: its commit API, LFS, and what xet stores."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading

TOKEN = "hf_secret"
COMMIT = "0" * 40


class Hub(http.server.ThreadingHTTPServer):
    """`files` are what the commits came to; those that went by LFS or xet are here as their bytes, or as `None`."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.repos, self.files, self.commits, self.lfs, self.xorbs = [], {}, {}, [], {}, {}
        self.refuses_xet = False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def paths(self, part):
        return [path for path in self.asked if part in path]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status=200, body=b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def handle_one(self):
        hub, body = self.server, self.body()
        hub.asked.append(f"{self.command} {self.path}")
        for pattern, action in ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {self.path}"):
                is_open = action in (lfs_put, xet_xorb, xet_shard, nothing)
                if not is_open and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.answer(401, {"error": "Invalid username or password."}, X_Error_Message="Invalid token")
                return action(self, hub, body, *found.groups())
        return self.answer(404, {"error": "not found"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_one


def create(handler, hub, body):
    asked = json.loads(body)
    name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
    if name in hub.repos:
        return handler.answer(409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"})
    # As older clients say it, and as newer ones do.
    hub.repos[name] = {"private": asked.get("private", False) or asked.get("visibility") == "private"}
    return handler.answer(200, {"url": f"{hub.url}/{name}", "name": name})


def valid(handler, hub, body):
    handler.answer(200, {"errors": [], "warnings": []})


def preupload(handler, hub, body):
    files = [
        {"path": one["path"], "shouldIgnore": False, "uploadMode": "lfs" if is_large(one["path"]) else "regular"}
        for one in json.loads(body)["files"]
    ]
    handler.answer(200, {"files": files, "commitOid": COMMIT})


def is_large(path):
    return path.endswith((".safetensors", ".png"))


def lfs_batch(handler, hub, body):
    objects = [
        {**one, "actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}, "verify": {"href": f"{hub.url}/verify"}}}
        for one in json.loads(body)["objects"]
    ]
    handler.answer(200, {"transfer": "basic", "objects": objects})


def lfs_put(handler, hub, body, oid):
    hub.lfs[oid] = body
    handler.answer(200)


def verify(handler, hub, body):
    asked = json.loads(body)
    found = hub.lfs.get(asked["oid"])
    handler.answer(200 if found is not None and len(found) == asked["size"] else 404)


def commit(handler, hub, body, repo):
    lines = [json.loads(line) for line in body.splitlines()]
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            hub.files[value["path"]] = base64.b64decode(value["content"])
        else:
            hub.files[value["path"]] = hub.lfs.get(value["oid"]) or (value["oid"], value["size"])
    hub.commits.append((lines[0]["value"]["summary"], [line["value"]["path"] for line in lines[1:]]))
    handler.answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.url}/{repo}/commit/{COMMIT}", "hookOutput": ""})


def resolve(handler, hub, body, name):
    content = hub.files.get(name)
    if not isinstance(content, bytes):
        return handler.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
    etag = hashlib.sha1(content).hexdigest()
    return handler.answer(200, content, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)


def xet_token(handler, hub, body):
    if hub.refuses_xet:
        return handler.answer(403, {"error": "not here"})
    told = {"accessToken": "xet", "exp": 4102444800, "casUrl": f"{hub.url}/cas"}
    return handler.answer(200, told, X_Xet_Cas_Url=told["casUrl"], X_Xet_Access_Token="xet", X_Xet_Token_Expiration="4102444800")


def xet_xorb(handler, hub, body, name):
    hub.xorbs[name] = body
    handler.answer(200, {"was_inserted": True})


def xet_shard(handler, hub, body):
    handler.answer(200, {"result": 1})


def nothing(handler, hub, body):
    handler.answer(404)


def chunks(xorb):
    """The chunks of a xorb that are stored as they are: version, size, kind and size again stand before each."""
    at = 0
    while at + 8 <= len(xorb):
        size, kind = int.from_bytes(xorb[at + 1 : at + 4], "little"), xorb[at + 4]
        if xorb[at] != 0 or kind != 0:
            return
        yield xorb[at + 8 : at + 8 + size]
        at += 8 + size


ROUTES = [
    (r"POST /api/repos/create", create),
    (r"POST /api/validate-yaml", valid),
    (r"POST /api/models/user/name/preupload/main", preupload),
    (r"POST /user/name\.git/info/lfs/objects/batch", lfs_batch),
    (r"PUT /lfs/([0-9a-f]{64})", lfs_put),
    (r"POST /verify", verify),
    (r"POST /api/models/(user/name)/commit/main", commit),
    (r"(?:GET|HEAD) /user/name/resolve/main/(.+)", resolve),
    (r"GET /api/models/user/name/xet-write-token/main", xet_token),
    (r"POST /cas/v1/xorbs/default/([0-9a-f]{64})", xet_xorb),
    (r"POST /cas/v1/shards", xet_shard),
    (r"(?:GET|POST) (?:/cas)?/v[0-9]/.*", nothing),
    (r"GET /api/agent-harnesses", nothing),
]


@contextlib.contextmanager
def serve():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join(10)
