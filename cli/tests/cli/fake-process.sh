#!/bin/sh
# Stands for a controller or a node: serves nothing itself, but says in its port file where the test does.
# FAKE_GRPC: address for the port file. FAKE_DIR: folder for notes. FAKE_DIES: name of a program that ends at once.
name=$(basename "$0")
echo "$name $*" >> "$FAKE_DIR/starts"
if [ "$name" = "$FAKE_DIES" ]; then
    echo "the disk is full" >&2
    exit 7
fi
while [ $# -gt 0 ]; do
    case "$1" in
        --port-file) port_file=$2 ;;
    esac
    shift
done
trap 'echo "$name" >> "$FAKE_DIR/stops"; exit 0' TERM
printf '{"grpc":"%s","metrics":"127.0.0.1:1"}' "$FAKE_GRPC" > "$port_file.tmp"
mv "$port_file.tmp" "$port_file"
while :; do
    sleep 0.1 &
    wait $!
done
