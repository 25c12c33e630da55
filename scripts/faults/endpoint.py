#!/usr/bin/env python3
"""An OpenAI-compatible stand-in that answers as today's servers do: endpoint.py PORT LOG [CONVERSATIONS].

The way of answering is what stands after ':' in the request's model, as in `model: "judge:parts"`. It writes prompts and
judges in three turns as docs/curation.md describes them. `GET /count` tells how many requests came, by way. What was asked, with what is right to say, goes to CONVERSATIONS, a line each.
endpoints.py runs it.
Standard library only.
"""
import json, re, sys, threading, time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, log = int(sys.argv[1]), open(sys.argv[2], "a", buffering=1)
conversations = open(sys.argv[3], "a", buffering=1) if len(sys.argv) > 3 else None
counts, lock = {}, threading.Lock()


def words(message):
    content = message["content"]
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def answer(messages):
    """What a server that does all right would say to this conversation."""
    last = words(messages[-1])
    found = re.search(r'Name (\d+) different examples of "([^"]+)"', last)
    if found:
        kinds = "red blue green old tiny shiny wooden paper".split()[: int(found.group(1))]
        return json.dumps({"subjects": [f"{kind} {found.group(2)}" for kind in kinds]})
    found = re.search(r"For each of the subjects (\[.*?\]) write (\d+)", last)
    if found:
        scenes = lambda s: [f"{s} on table {n} in soft light" for n in range(int(found.group(2)))]
        return json.dumps({"subjects": [{"subject": s, "scenes": scenes(s)} for s in json.loads(found.group(1))]})
    if "JSON object" in last:
        return '{"scores": [{"part": "handle", "score": 4}, {"part": "body", "score": 4}]}'
    return "handle: none. body: none." if "differ" in last else "a cup\nfirst\nsecond\nparts: handle, body"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send(self, status, body, headers=()):
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (("Content-Type", "application/json"), *headers, ("Content-Length", str(len(data)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def error(self, status, message, code=None, param=None, headers=()):
        self.send(status, {"error": {"message": message, "type": "error", "param": param, "code": code}}, headers)

    def reply(self, content, finish="stop", usage=True, **fields):
        message = {"role": "assistant", "content": content, **fields}
        body = {"id": "x", "object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": finish}]}
        if usage:
            body["usage"] = {"prompt_tokens": 900, "completion_tokens": 30, "total_tokens": 930}
        self.send(200, body)

    def do_GET(self):
        self.send(200, counts)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        way = body["model"].partition(":")[2] or "right"
        with lock:
            counts[way] = counts.get(way, 0) + 1
        log.write(f"{time.time():.2f} {way} { {k: v for k, v in body.items() if k != 'messages'} }\n")
        text, pictures = answer(body["messages"]), any(isinstance(m["content"], list) for m in body["messages"])
        if conversations:
            # Pictures are not kept: they are large, and the answers do not depend on them.
            for part in (part for message in body["messages"] if isinstance(message["content"], list) for part in message["content"]):
                part.pop("image_url", None)
            conversations.write(json.dumps({"messages": body["messages"], "answer": text}) + "\n")
        if way == "right":
            self.reply(text)
        elif way == "no-temperature":  # newer hosted models
            self.error(400, "temperature: only the default is taken", "unsupported_value", "temperature") if "temperature" in body else self.reply(text)
        elif way == "no-max-tokens":
            self.error(400, "max_tokens: use max_completion_tokens", "unsupported_parameter", "max_tokens") if "max_tokens" in body else self.reply(text)
        elif way == "parts":  # content as a list
            self.reply([{"type": "text", "text": text}])
        elif way == "think":  # open models without a reasoning parser
            self.reply("<think>\nperhaps 3? {\"x\": 1}\n</think>\n\n" + text)
        elif way == "reasoning-field":  # with a reasoning parser that takes all
            self.reply(None, reasoning_content=text)
        elif way == "length":  # thought until the limit
            self.reply(None, finish="length", reasoning_content="hm " * 50)
        elif way in ("ok-429", "ok-401", "ok-400"):  # gateways: 200 with an error inside
            self.send(200, {"error": {"message": f"inner {way[3:]}", "code": int(way[3:])}})
        elif way == "fence-and-prose":
            self.reply("Here it is:\n\n```json\n" + text + "\n```\n\nAll parts match.")
        elif way == "float-scores":
            self.reply(text.replace(": 4", ": 4.0"))
        elif way == "string-scores":
            self.reply(text.replace(": 4", ': "4"'))
        elif way == "extra-field":
            self.reply(text.replace('": 4}', '": 4, "reason": "same"}'))
        elif way == "over":  # must be refused
            self.reply(text.replace(": 4", ": 5"))
        elif way == "no-usage":
            self.reply(text, usage=False)
        elif way == "retry-date":
            self.error(429, "slow down", "rate_limit_exceeded", headers=[("Retry-After", formatdate(time.time() + 6, usegmt=True))])
        elif way == "quota":  # will not pass
            self.error(429, "no credit left: you exceeded your current quota", "insufficient_quota")
        elif way == "no-pictures":
            self.error(500, "pictures are not taken") if pictures else self.reply(text)
        elif way == "unknown-model":
            self.error(404, "no such model", "model_not_found")
        else:
            self.error(500, f"unknown way {way}")


class Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128


Server(("127.0.0.1", port), Handler).serve_forever()
