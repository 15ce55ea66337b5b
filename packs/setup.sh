#!/bin/sh
# Prepares a Debian or Ubuntu machine to build the data packs. Run from anywhere, as a user who may sudo.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
as_root apt-get update
as_root apt-get install -y espeak-ng python3-venv
# A Node.js that is not Debian's brings its own npm and conflicts with Debian's package.
command -v npm >/dev/null || as_root apt-get install -y npm
python3 -m venv "$HOME/.cache/danlu/venv"
"$HOME/.cache/danlu/venv/bin/pip" install -r "$here/requirements.txt"
echo "now: $HOME/.cache/danlu/venv/bin/python $here/pictograms/build.py --out DIR"
