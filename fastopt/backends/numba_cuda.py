"""Numba for CUDA: kernels compiled to PTX, launched on the caller's own stream without ever waiting for the device."""

from __future__ import annotations

from ..errors import BackendUnavailable, install_command

try:
    import numba_cuda  # noqa: F401  (before Numba's own CUDA target, in whose place it stands)
    from cuda import core  # noqa: F401
except ImportError as error:
    raise BackendUnavailable(f"numba-cuda is not installed ({error}): {install_command('cuda')}") from None

from .cuda import driver

try:
    _devices = driver.count_devices()
except RuntimeError as error:
    missing = "can only be found via system search" in str(error)
    raise BackendUnavailable(
        ("no NVIDIA driver was found" if missing else f"the NVIDIA driver does not work ({error})")
        + "; it comes with the system, not with Python's packages: https://www.nvidia.com/drivers"
    ) from None
if not _devices:
    raise BackendUnavailable("no CUDA device is visible to this process; see CUDA_VISIBLE_DEVICES and nvidia-smi")

from .cuda.graphs import CapturableRunner
from .cuda.rows import find_bags
from .cuda.runs import Runner, scale, square_sums
from .cuda.views import assign, new_array, to_host, view_cuda

prepare = Runner

__all__ = [
    "CapturableRunner",
    "assign",
    "find_bags",
    "new_array",
    "prepare",
    "scale",
    "square_sums",
    "to_host",
    "view_cuda",
]
