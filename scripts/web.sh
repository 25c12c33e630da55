#!/usr/bin/env bash
# Builds the web page (web/) into web/dist, from where the controller's build takes it. Wants Node.js 20.19 or newer with npm;
# without them it says so, and the controller is built without the page. Running it again does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

script=web
. scripts/need.sh

# An odd version is as little supported as an old one.
enough='const [major, minor] = process.versions.node.split(".").map(Number);
process.exit((major === 20 && minor >= 19) || (major === 22 && minor >= 12) || major >= 24 ? 0 : 1)'
if ! node -e "$enough" >/dev/null 2>&1 || ! npm --version >/dev/null 2>&1; then
    say "SKIPPED: Node.js 20.19, 22.12 or 24 and newer with npm is not here; the controller is built without the web page"
    exit 0
fi

export PROTOC=${PROTOC:-$(deps_folder)/venv/bin/protoc}
sources=$(find web/src web/public web/scripts web/index.html web/*.json web/*.ts proto/proto/crescendo/v1 \
    -path web/src/gen -prune -o -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum)
mkdir -p web/build
if [ "$(cat web/build/sources 2>/dev/null)" = "$sources" ] && [ -e web/dist/index.html ]; then exit 0; fi
if ! cmp -s web/package-lock.json web/build/package-lock.json; then
    say "fetching what the page is built with"
    if ! npm ci --prefix web --silent; then
        say "SKIPPED: what the page is built with cannot be fetched; the controller is built without the web page"
        exit 0
    fi
    cp web/package-lock.json web/build/package-lock.json
fi
say "building the page"
npm run --prefix web --silent build >web/build/log 2>&1 || { cat web/build/log; fail "the page could not be built"; }
printf '%s\n' "$sources" >web/build/sources
