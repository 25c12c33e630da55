#!/usr/bin/env bash
# Generates messages and stubs from the protos into generated/. Needs grpcio-tools: pip install -r requirements.txt.
# PYTHON names the interpreter that has it [default: python3].
set -euo pipefail
cd "$(dirname "$0")"

protos=../../proto/proto
rm -rf generated
mkdir generated
"${PYTHON:-python3}" -m grpc_tools.protoc -I "$protos" \
    --python_out=generated --pyi_out=generated --grpc_python_out=generated \
    "$protos"/crescendo/v1/{access,checkpoint,deletion,job}.proto
