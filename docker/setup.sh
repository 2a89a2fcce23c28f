#!/bin/sh
# Set up the project's virtual environment as its locks say, and fetch jars and, if need be, a Java.
# Usage: docker/setup.sh VENV   (PYTHON names the Python 3.11 to use)
#
# Nothing here names an index: pip and uv use what the machine is set up with, and the hashes say what is right.
set -eu

venv=$1
python=${PYTHON:-python3}

say() { printf '%s\n' "$*" >&2; }
die() { say "setup: $*"; exit 1; }

command -v "$python" >/dev/null || die "there is no $python here. Install python3 (3.11), or name one: make setup PYTHON=/path/to/python3.11"
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
  die "$python is $("$python" --version 2>&1), and Airflow is locked for Python 3.11. Name one: make setup PYTHON=/path/to/python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  die "$python has no venv. Install it (on Debian: apt-get install python3-venv)."

if ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
  say "setup: virtual environment in $venv"
  rm -rf "$venv"
  "$python" -m venv "$venv"
fi
if [ "$("$venv/bin/uv" --version 2>/dev/null | cut -d' ' -f2)" != "$(sed -n 's/^uv==\([^ ]*\).*/\1/p' docker/requirements/bootstrap.txt)" ]; then
  say "setup: uv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes --no-deps -r docker/requirements/bootstrap.txt
fi
# uv takes the environment from VIRTUAL_ENV; a shell may be in another
VIRTUAL_ENV=$(cd "$venv" && pwd)
export VIRTUAL_ENV
# a file system without links or clones between cache and environment is no reason for a warning
if [ -t 2 ]; then set --; else set -- --quiet; fi
say "setup: packages, as docker/requirements/development.txt says"
"$venv/bin/uv" pip sync "$@" --require-hashes docker/requirements/development.txt
"$venv/bin/uv" pip install --quiet --no-deps --no-build-isolation --editable .

# Bytecode is made once here, on all cores, instead of by each of the platform's processes at its first start.
"$venv/bin/python" -m compileall -q -j 0 "$venv/lib/python3.11/site-packages/airflow" >/dev/null 2>&1 &
compiling=$!
say "setup: jars and Java"
"$venv/bin/python" -m trilake.platform.embedded.provision
wait "$compiling" || true
say "setup: done"
