"""The families of kernels, each behind the same small interface: `fastopt.dispatch.Backend`."""
