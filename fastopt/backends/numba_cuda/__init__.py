"""Numba for CUDA: kernels compiled to PTX, launched on the caller's own stream without ever waiting for the device."""
