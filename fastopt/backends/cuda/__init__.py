"""What the CUDA backend is made of; it is `fastopt.backends.numba_cuda`."""
