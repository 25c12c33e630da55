#!/bin/sh
# Fetches files into a folder, and keeps only those whose SHA-256 is as it should be:
#
#   fetch.sh LIST FOLDER [HEADERS]
#
# A line of LIST is `SHA256 PATH URL`; HEADERS is a file with a header of the requests on each line, a login for example.
# What is there already and right is not fetched again. A file comes into being whole, by its last step: whoever reads the
# folder meanwhile finds the old one or none.
set -eu

list=$1 folder=$2 headers=${3:-}

has_sum() { [ -f "$2" ] && echo "$1  $2" | sha256sum -c >/dev/null 2>&1; }

# Goes on from what is there. Slower than a kilobyte a second for two minutes is taken for dead.
download() {
    curl --fail --location --proto =https --proto-redir =https --silent --show-error \
        --connect-timeout 30 --speed-limit 1024 --speed-time 120 --retry 5 --retry-delay 5 --continue-at - \
        ${headers:+--header "@$headers"} --output "$1" "$2" </dev/null
}

fetch() {
    sum=$1 path=$2 url=$3 file=$folder/$2
    if has_sum "$sum" "$file"; then
        echo "$path: is there"
        return 0
    fi
    mkdir -p "$(dirname "$file")" || return 1
    # Named after this pod: two that append to one file would both be wrong. What an earlier one left behind goes.
    part=$file.$(hostname).part
    for other in "$file".*.part; do
        [ "$other" = "$part" ] || rm -f "$other"
    done
    if ! has_sum "$sum" "$part"; then
        echo "$path: fetching $url"
        code=0
        download "$part" "$url" || code=$?
        if [ "$code" != 0 ]; then
            echo "$path: could not be fetched" >&2
            # Refused, or nothing to go on from there: the next try begins anew.
            case $code in 22 | 33 | 36) rm -f "$part" ;; esac
            return 1
        fi
    fi
    if ! has_sum "$sum" "$part"; then
        echo "$path: has the SHA-256 $(sha256sum "$part" | cut -d' ' -f1), and should have $sum: not kept" >&2
        rm -f "$part"
        return 1
    fi
    mv -f "$part" "$file" && echo "$path: is there now"
}

failed=0
while read -r sum path url; do
    fetch "$sum" "$path" "$url" || failed=$((failed + 1))
done <"$list"
if [ "$failed" != 0 ]; then
    echo "files that are missing: $failed" >&2
    exit 1
fi
