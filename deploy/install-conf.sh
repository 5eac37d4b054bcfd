#!/bin/sh
# Copies SOURCE to DESTINATION at one stroke, so that no runtime reads half a file: flannel's
# manifest calls this.
set -e
[ $# = 2 ] || { echo "usage: install-conf SOURCE DESTINATION" >&2; exit 1; }
new=$(dirname "$2")/.$(basename "$2").tmp
cp "$1" "$new"
mv "$new" "$2"
