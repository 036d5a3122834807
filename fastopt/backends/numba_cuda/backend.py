"""The members of the CUDA backend, where there is a device."""

from __future__ import annotations

from ...arrays.libraries import cuda  # noqa: F401  (which says why there is none)
from .graphs import CapturableRunner
from .limits import Norms
from .rows import find_bags
from .runs import Runner, scale, square_sums

prepare, prepare_captured, prepare_sums, prepare_norms = Runner, CapturableRunner, None, Norms

__all__ = ["find_bags", "prepare", "prepare_captured", "prepare_norms", "prepare_sums", "scale", "square_sums"]
