"""What only a machine with a GPU can show: `tests/gpu/run.sh`, or `pytest -m gpu tests/gpu` where all is installed.

Everything but the kernels themselves also runs on the CPU, in tests/engines/exllamav2/test_gpu_tests.py, so that these
tests do not break at the first contact with a GPU.
"""
