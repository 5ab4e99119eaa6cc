#!/usr/bin/env bash
# Measures the full preset on one GPU, without a download: benchmarks/gpu.sh [--small] [--work DIR] [--parts PART ...]
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" -m benchmarks.gpu "$@"
