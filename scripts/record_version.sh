#!/usr/bin/env bash
# Keeps what a version writes (records, messages, resolved specs) in proto/tests/recorded/NAME, where the tests of later ones read it.
# Usage: scripts/record_version.sh REV NAME
set -euo pipefail
cd "$(dirname "$0")/.."

rev=$(git rev-parse --verify "$1^{commit}")
out=$PWD/proto/tests/recorded/$2
checkout=$(mktemp -d)
trap 'git worktree remove --force "$checkout"' EXIT
git worktree add --quiet --detach "$checkout" "$rev"
ln -s "$PWD/.deps" "$checkout/.deps"
mkdir -p "$checkout/proto/examples"
cp scripts/recorded/record.rs "$checkout/proto/examples/record.rs"
target=${CARGO_TARGET_DIR:-$PWD/target}/recorded
(cd "$checkout" && CARGO_TARGET_DIR=$target cargo run --locked -p crescendo-proto --example record -- examples "$out")
