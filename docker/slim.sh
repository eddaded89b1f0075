#!/bin/sh
# sh slim.sh VENV MODULE...: remove what a service does not need, and compile what it imports, which also shows that it can.
set -eu
venv=$1
shift
cd "$venv"/lib/python3*/site-packages
rm -rf torch/include torch/test torch/bin/protoc* sqlalchemy/testing alembic/testing
rm -rf pyarrow/include pyarrow/*arrow*_flight* pyarrow/_flight* pyarrow/libarrow_s3* pyarrow/_s3fs* # clients of other servers
rm -rf PIL/_avif.* pillow.libs/libavif-* # PNG, JPEG and WebP are read
# plots are SVG and PNG in DejaVu Sans; of fontTools, which is for PDF and PostScript, the names of glyphs are read
rm -rf matplotlib/mpl-data/sample_data matplotlib/mpl-data/fonts/afm matplotlib/mpl-data/fonts/pdfcorefonts
rm -rf matplotlib/mpl-data/fonts/ttf/DejaVuSerif* matplotlib/mpl-data/images matplotlib/backends/web_backend
find fontTools -mindepth 1 -maxdepth 1 -type d -not -name misc -exec rm -rf {} +
find . -depth -type d \( -name tests -o -name test \) -not -path './torch/*' -exec rm -rf {} +
find . -type f \( -name '*.pyi' -o -name '*.a' -o -name '*.h' -o -name '*.c' -o -name '*.pyx' -o -name '*.pxd' \) -delete
find . -type f -name '*.so*' \( -not -path './torch/*' -o -name libtorch_cpu.so \) -exec strip --strip-unneeded {} + 2>/dev/null || true
# others are compiled in memory when they are needed: the file system is read-only
PYTHONDONTWRITEBYTECODE='' "$venv"/bin/python -c "import importlib, sys; [importlib.import_module(one) for one in sys.argv[1:]]" "$@"
