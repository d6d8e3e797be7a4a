#!/usr/bin/env bash
# Run the tests that need a GPU and write their table: tests/gpu/run.sh [FOLDER OF WHEELS] [TABLE.md] [pytest arguments]
#
# The machine needs Python with a CUDA build of torch, nvcc and g++. Without a network, bring what its Python lacks as
# wheels, fetched elsewhere for its Python (3.12 here), one version of each:
#
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_31_x86_64 \
#       --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d wheels \
#       exllamav2==0.3.2 'msgspec>=0.20' 'llguidance>=1.9' 'quart>=0.20' 'hypercorn>=0.18,<0.19' 'websockets>=15' \
#       gguf flask blinker itsdangerous wsproto h2 hpack hyperframe priority aiofiles werkzeug
#
# torch older than 2.12 is fine here: attention gathers its pages then.
set -euo pipefail
wheels=${1:+$(realpath "$1")}
table=$(realpath "${2:-gpu.md}")
shift $(($# < 2 ? $# : 2))
cd "$(dirname "$0")/../.."

paths=$PWD
if [ -n "$wheels" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$wheels"/*.whl
    paths=$site:$paths
fi
export PYTHONPATH=$paths${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
# Only for the GPU that is here: the extension compiles in a fraction of the time.
if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ]; then
    arch=$(python3 -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())' 2>/dev/null) || true
    [ -z "$arch" ] || export TORCH_CUDA_ARCH_LIST=$arch
fi
python3 -m pytest -m gpu tests/gpu -p no:cacheprovider -W default -s -ra --gpu-report "$table" "$@"
