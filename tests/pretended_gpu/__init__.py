"""A GPU for tests on a machine without one: `python -m tests.pretended_gpu ARGUMENTS OF PYTHON`.

    python -m tests.pretended_gpu -m pytest -n0 -m gpu
    python -m tests.pretended_gpu -m chatcache --device cuda

torch takes it for a CUDA device, in that process and in those that it starts. Its memory is not the
host's: tensors of both places in one operation are refused, new memory is full of NaN, a capture
refuses what a graph cannot hold. It computes at once and slowly, on the CPU: order and speed of a
card are not to be seen on it (`tests/lazy_link.py` is about the order). A compiler (c++) is needed.
"""
