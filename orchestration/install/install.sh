#!/usr/bin/env bash
# Prepares $VENV from the pinned constraints, and checks for system libraries that some wheels load at import.
set -euo pipefail
PYTHON=${PYTHON:-python3} VENV=${VENV:-.venv}
HERE=$(cd "$(dirname "$0")" && pwd) ROOT=$(cd "$(dirname "$0")/../.." && pwd)
fail() { echo "install: $*" >&2; exit 1; }

"$PYTHON" -c 'import sys; sys.exit(not sys.version_info[:2] == (3, 11))' \
  || fail "needs Python 3.11, found $("$PYTHON" --version); name one: make install PYTHON=python3.11"
command -v g++ >/dev/null || fail "needs a C++ compiler (DeepSpeed); on Debian: apt-get install -y g++"

# library -> Debian package: MediaPipe and OpenCV load these at import
missing=""
for pair in libEGL.so.1:libegl1 libGLESv2.so.2:libgles2 libGL.so.1:libgl1; do
  "$PYTHON" -c "import ctypes; ctypes.CDLL('${pair%%:*}')" 2>/dev/null || missing="$missing ${pair##*:}"
done
if [ -n "$missing" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "install: adding system libraries:$missing"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
  else
    fail "system libraries are missing; run: sudo apt-get install -y$missing"
  fi
fi

echo "install: preparing $VENV (the first time downloads about 4 GB of packages; a few minutes)"
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
# pip would compile on one core; all cores do it below
"$VENV/bin/python" -m pip install --no-compile --disable-pip-version-check --progress-bar off -c "$HERE/constraints.txt" -e "${ROOT}[dev]" \
  | sed -u '/^Requirement already/d; /^Looking in/d; /Using cached/d; /metadata/d; /^  /d; /^Installing collected/s/: .*/ (a few minutes)/; /^Successfully installed/d'
echo "install: compiling the packages (about a minute)"
# where bytecode cannot be written later, each of the many worker processes would compile them again: importing torch,
# deepspeed and transformers takes 10.5 s of CPU then, 4.6 s after this. Templates in some packages do not compile.
# The tests of the packages and Ray's reinforcement learning are never imported: an eighth of the source text
"$VENV/bin/python" -m compileall -qq -j 0 -x 'site-packages/.*/(tests|rllib)/' "$VENV"/lib/python3.11/site-packages \
  "$ROOT"/{uniavgen,curation,ingest,orchestration,shards,train} || true
"$VENV/bin/uniavgen" --help >/dev/null
echo "install: ready; try $VENV/bin/uniavgen doctor"
