#!/usr/bin/env bash
# Run the tests that need a GPU and write their table: tests/gpu/run.sh [FOLDER OF WHEELS] [TABLE.md] [pytest arguments]
#
# The machine needs Python with a CUDA build of torch, nvcc and g++. Without a network, bring what its Python lacks as
# wheels, fetched elsewhere for its Python (3.12 here), one version of each:
#
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
#       --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d wheels \
#       exllamav2==0.3.2 msgspec llguidance quart hypercorn websockets gguf flask blinker itsdangerous wsproto h2 \
#       hpack hyperframe priority aiofiles werkzeug
#
# torch older than 2.12 is fine here: attention gathers its pages then.
set -euo pipefail
cd "$(dirname "$0")/../.."
wheels=${1:-}
table=${2:-gpu.md}
shift $(($# < 2 ? $# : 2))

if [ -n "$wheels" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$wheels"/*.whl
    export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
else
    export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
fi
# Only for the GPUs that are here: the extension compiles in a fraction of the time.
TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$(python3 -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')}
export TORCH_CUDA_ARCH_LIST PYTHONUNBUFFERED=1
python3 -m pytest -m gpu tests/gpu -p no:cacheprovider -W default -s -ra --gpu-report "$table" "$@"
