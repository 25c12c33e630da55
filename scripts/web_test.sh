#!/usr/bin/env bash
# Tests the web page: its types, its parts, and all of it in a real browser against a real cluster of the programs in
# CRESCENDO_BIN (target/debug). Wants Node.js as scripts/web.sh does, and Chromium: named by CHROMIUM, or found on PATH, or
# installed as root on Debian. Without either it says what was skipped. Arguments go to the browser's tests.
set -euo pipefail
cd "$(dirname "$0")/.."

script=web-test
. scripts/need.sh

scripts/web.sh
if ! [ -e web/dist/index.html ]; then
    say "SKIPPED: the page was not built, and is not tested"
    exit 0
fi
npm run --prefix web --silent check
npm test --prefix web --silent

CHROMIUM=${CHROMIUM:-$(command -v chromium chromium-browser google-chrome | head -1 || true)}
if [ -z "$CHROMIUM" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    # Ubuntu's package of this name is another kind of thing, and brings none.
    (need "command -v chromium" "Chromium, for the tests of the web page" "chromium") || true
    CHROMIUM=$(command -v chromium || true)
fi
if [ -z "$CHROMIUM" ]; then
    say "SKIPPED: no Chromium is here (CHROMIUM=PATH, or Debian's package chromium): the page is not tested in a browser"
    exit 0
fi
export CHROMIUM CRESCENDO_BIN=${CRESCENDO_BIN:-target/debug}
cd web
node --test --test-timeout=600000 --test-reporter=spec "$@" test/e2e/page.test.mjs
