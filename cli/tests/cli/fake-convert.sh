#!/bin/sh
# Stands for `crescendo-workbench lora convert --to FORMAT --out OUT IN`: writes what it was asked for and what it read.
if [ -n "$FAKE_REFUSES" ]; then
    echo "error: no adapter" >&2
    exit 1
fi
echo "$4 of $(cat "$7")" > "$6"
