#!/bin/sh
# sh slim.sh VENV MODULE...: remove what a service does not need, and compile what it imports at its start.
set -eu
venv=$1
shift
cd "$venv"/lib/python3*/site-packages
rm -rf torch/include torch/test pyarrow/include
find . -depth -type d \( -name tests -o -name test \) -not -path './torch/*' -exec rm -rf {} +
find . -type f \( -name '*.pyi' -o -name '*.a' -o -name '*.h' -o -name '*.c' -o -name '*.pyx' -o -name '*.pxd' \) -delete
find . -type f -name '*.so*' -not -path './torch/*' -exec strip --strip-unneeded {} + 2>/dev/null || true
# others are compiled in memory when they are needed: the file system is read-only
PYTHONDONTWRITEBYTECODE='' "$venv"/bin/python -c "import importlib, sys; [importlib.import_module(one) for one in sys.argv[1:]]" "$@"
