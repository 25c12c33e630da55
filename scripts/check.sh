#!/usr/bin/env bash
# What to run while writing: format and clippy of the crates that were changed since the last commit (or since BASE), and
# their tests. Crates that depend on them are for `make test`; ALL=1 checks that those still compile.
set -euo pipefail
cd "$(dirname "$0")/.."

base=${BASE:-HEAD}
changed=$({ git diff --name-only "$base"; git ls-files --others --exclude-standard; } | sort -u)
cargo fmt --all --check

# Every crate by its folder, the longest first: a file belongs to the innermost.
crates=$(cargo metadata --no-deps --format-version 1 | python3 -c '
import json, os, sys
root = os.getcwd() + "/"
packages = json.load(sys.stdin)["packages"]
folders = [(os.path.dirname(p["manifest_path"])[len(root):], p["name"]) for p in packages]
for folder, name in sorted(folders, key=lambda one: -len(one[0])):
    print(folder, name)')

packages=()
rest=
while read -r file; do
    case "$file" in
    '' | docs/* | *.md | helm/* | examples/* | python/* | findings/* | bench/* | images/* | .ci/*) continue ;;
    assets/*) packages+=(-p crescendo-curator-node) && continue ;;
    esac
    owner=
    while read -r folder name; do
        case "$file" in "$folder"/*) owner=$name && break ;; esac
    done <<<"$crates"
    if [ -n "$owner" ]; then packages+=(-p "$owner"); else rest=$file; fi
done <<<"$changed"
if [ -n "$rest" ]; then
    echo "check: $rest may concern every crate: compiling them all"
    cargo check --quiet --workspace --all-targets
fi
if [ ${#packages[@]} -eq 0 ]; then
    echo "check: nothing in a crate has changed since $base"
    exit 0
fi
mapfile -t packages < <(printf '%s\n' "${packages[@]}" | grep -vx -- -p | sort -u | sed 's/^/-p\n/')
echo "check: ${packages[*]}"
cargo clippy --quiet --all-targets "${packages[@]}" -- -D warnings
case " ${packages[*]} " in *" crescendo-tests "*) cargo build --quiet --workspace --bins ;; esac
cargo nextest run --no-fail-fast --status-level fail --final-status-level fail "${packages[@]}"
if [ -n "${ALL:-}" ]; then cargo check --quiet --workspace --all-targets; fi
