#!/usr/bin/env bash
# An upgrade and a rollback with a job in training, between an earlier version (REV) and this one. The earlier version is built once,
# in a checkout of its own, and its programs are kept in .deps/versions/COMMIT.
set -euo pipefail
cd "$(dirname "$0")/.."

rev=$(git rev-parse --verify "${REV:-4386623}^{commit}")
kept=$PWD/.deps/versions/$rev
programs=(crescendo-controller crescendo-curator-node crescendo-trainer-node crescendo)

if [ ! -x "$kept/crescendo" ]; then
    echo "upgrade-test: building $rev, once"
    checkout=$(mktemp -d)
    trap 'git worktree remove --force "$checkout"' EXIT
    git worktree add --quiet --detach "$checkout" "$rev"
    ln -s "$PWD/.deps" "$checkout/.deps"
    target=${CARGO_TARGET_DIR:-$PWD/target}/upgrade
    packages=(-p crescendo-controller -p crescendo-curator-node -p crescendo-trainer-node -p crescendo-cli)
    (cd "$checkout" && CARGO_TARGET_DIR=$target cargo build --locked "${packages[@]}" --bins)
    mkdir -p "$kept.part"
    for program in "${programs[@]}"; do cp "$target/debug/$program" "$kept.part/"; done
    mv "$kept.part" "$kept"
fi

cargo build --workspace --bins --tests
CRESCENDO_OLD_BIN=$kept cargo nextest run --workspace --no-fail-fast -E "package(crescendo-tests) & binary(upgrade)" "$@"
