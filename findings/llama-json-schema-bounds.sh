#!/usr/bin/env bash
# One would guess: an answer under response_format json_schema with strict has the form of the schema, or the schema is refused.
# What happens: llama.cpp's server makes a grammar of what it can, and leaves out the rest without a word, with status 200. Bounds of an
#   `integer` hold; those of a `number` do not, nor do multipleOf and uniqueItems.
# Seen with: llama.cpp in xllamacpp 2026.10.11549, a model of some kilobytes that is made here and led by logit_bias.
# Why it matters: a judge's `{"type": "number", "maximum": 4}` lets a 9 through as a structured answer, and whoever trusts the schema
#   counts it.
# Documented: llama.cpp's grammars/README.md lists bounds of numbers and uniqueItems as not supported, "skipped silently".
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(xllamacpp==2026.10.11549 gguf==0.19.0 numpy==2.4.6)
install() {
    if command -v uv >/dev/null 2>&1; then
        uv venv --quiet "$folder/venv" && uv pip install --quiet --python "$folder/venv/bin/python" "${packages[@]}"
    else
        python3 -m venv "$folder/venv" && "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
    fi
}
install || { echo "not run: the packages cannot be installed" >&2; exit 2; }

cd "$folder"
cat >finding.py <<'PY'
import json
import os
import socket
import sys
import urllib.error
import urllib.request
from importlib.metadata import version

import gguf
import numpy as np
import xllamacpp

WIDTH, CONTEXT = 32, 512
# One token a byte, as GPT-2 spells bytes, and an end.
plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
others = iter(range(256, 512))
letters = [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]
tokens, END = [*letters, "<end>", "ab"], 256


def write_model(path):
    """One layer of zeros: every token is as likely as any other."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token == "<end>" else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    zeros = lambda *shape: np.zeros(shape, np.float32)
    for name in ("token_embd", "output"):
        writer.add_tensor(f"{name}.weight", zeros(len(tokens), WIDTH))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", zeros(WIDTH, WIDTH))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", zeros(WIDTH) + 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ask(port, schema):
    """The status and the score of a model that would say 9 wherever it may, and otherwise end as soon as it may."""
    bias = {str(ord("9")): 20, str(ord("}")): 18, str(ord("]")): 18, str(ord(" ")): -20, str(ord("\n")): -20}
    schema = {"type": "object", "properties": {"score": schema}, "required": ["score"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "score", "strict": True, "schema": schema}}
    body = {"model": "zeros", "messages": [{"role": "user", "content": "score"}], "temperature": 0, "max_tokens": 200,
            "logit_bias": bias, "response_format": form}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(json.load(answer)["choices"][0]["message"]["content"])["score"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()[:200]


os.environ["NO_PROXY"] = "127.0.0.1"
write_model("zeros.gguf")
with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port = "zeros.gguf", ["127.0.0.1"], port
params.n_ctx, params.n_parallel, params.warmup, params.use_jinja, params.verbosity = CONTEXT, 1, False, True, 0
server = xllamacpp.Server(params)
CASES = {
    "integer, 0 to 4": ({"type": "integer", "minimum": 0, "maximum": 4}, lambda score: 0 <= score <= 4, True),
    "number, 0 to 4": ({"type": "number", "minimum": 0, "maximum": 4}, lambda score: 0 <= score <= 4, False),
    "integer, a multiple of 5": ({"type": "integer", "multipleOf": 5}, lambda score: score % 5 == 0, False),
    "three integers from 0 to 9, all different": (
        {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 3, "maxItems": 3, "uniqueItems": True},
        lambda score: len(set(score)) == len(score) == 3, False),
}
print("xllamacpp", version("xllamacpp"))
changed = False
for name, (schema, holds, expected) in CASES.items():
    status, score = ask(port, schema)
    held = status == 200 and holds(score)
    changed = changed or status != 200 or held != expected
    print(f"{name}: status {status}, {score}: {'as the schema says' if held else 'not what the schema says'}")
print("this has changed" if changed else "as described", flush=True)
# Its threads are still listening.
os._exit(1 if changed else 0)
PY
"$folder/venv/bin/python" finding.py
