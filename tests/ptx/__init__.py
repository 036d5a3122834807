"""Runs compiled PTX on the CPU and checks its memory accesses, so that CUDA kernels are tested without a GPU."""
