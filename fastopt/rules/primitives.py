"""The few functions, beside arithmetic, that a rule may call.

Rules are written with these and with ``+ - * /`` alone, so that one body serves scalars (Python, Numba on the CPU and
on CUDA) and whole arrays (NumPy expressions): whoever needs another meaning binds the same names to other functions.
Each is a choice between values already computed, never a branch, which is what lets compilers vectorise a rule.
"""

from __future__ import annotations

from math import exp, isnan, log, sqrt

__all__ = ["exp", "isnan", "log", "maximum", "sqrt", "where"]


def where(condition, a, b):
    """``a`` where the condition holds, else ``b``."""
    return a if condition else b


def maximum(a, b):
    """The larger of the two; NaN if either is NaN."""
    return where((a >= b) | (a != a), a, b)
