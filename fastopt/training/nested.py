"""Nested parameters as a flat list of arrays: names, copies, writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays.array import Array
from ..arrays.checks import check_writable
from ..arrays.dtypes import BFLOAT16, CODES, compute_dtype, dtype_name, numpy_dtype
from ..arrays.libraries import assign, floats_of, to_host, view
from ..binding.structure import Leaf, read_tree
from ..checks import differing


def leaves(params: Any, name: str = "params") -> list[Leaf]:
    """The arrays of nested parameters.

    Raises
    ------
    TypeError, ValueError
        There is none, a leaf is no array, or two have the same path.
    """
    found = [Leaf(key, label, view(value, label)) for key, label, value in read_tree(params, name)[1]]
    if not found:
        raise ValueError(f"{name}: found no array, expected at least one")
    keys: dict[str, str] = {}
    for key, label, _ in found:
        if key in keys:
            raise ValueError(f"{label}: found the path {key!r} of {keys[key]} too, expected distinct ones")
        keys[key] = label
    return found


def check_floats(found: Sequence[Leaf]) -> None:
    """Refuse arrays that hold anything but floats.

    Raises
    ------
    TypeError
        One does.
    """
    for leaf in found:
        if leaf.array.dtype not in CODES:
            raise TypeError(
                f"{leaf.name}: found dtype {leaf.array.dtype}, expected float32, float64, bfloat16 or float16 in "
                "native byte order"
            )


def check_written(found: Sequence[Leaf], purpose: str) -> None:
    """Refuse arrays that cannot be written.

    Raises
    ------
    ValueError
        One is read-only or overlaps itself.
    """
    for leaf in found:
        check_writable(leaf.array, leaf.name, purpose)


def _kept_dtype(array: Array) -> np.dtype:
    """The dtype of a copy: float32 of 16-bit floats, which loses no bit, the array's own elsewhere."""
    return compute_dtype(array.dtype) if array.dtype == BFLOAT16 or array.dtype.kind == "f" else array.dtype


def copy_of(array: Array) -> np.ndarray:
    """A copy of an array's elements on the CPU."""
    if _kept_dtype(array) != array.dtype:
        return floats_of(array)
    return np.array(to_host(array), order="C")


def write(array: Array, values: Any) -> None:
    """Write all elements of an array, those of another, each rounded to the nearest that it can hold."""
    owner = array.owner
    if hasattr(owner, "detach"):
        import torch

        owner.detach().copy_(torch.as_tensor(values))
    elif array.place.kind == "cpu":
        target = array.numpy()
        if array.dtype == BFLOAT16:
            target = target.view(numpy_dtype(BFLOAT16))
        with np.errstate(over="ignore"):
            target[...] = values
    else:
        assign(owner, values)


def read_copies(saved: Any, name: str) -> dict[str, np.ndarray]:
    """Copies of arrays by their paths, as a state dict or a file has them.

    Raises
    ------
    TypeError
        It is no mapping, or holds something else than arrays.
    """
    if not isinstance(saved, Mapping):
        raise TypeError(f"{name}: found {type(saved).__name__}, expected a mapping of paths to arrays")
    return {str(key): copy_of(view(value, f"{name}[{key!r}]")) for key, value in saved.items()}


def check_fit(found: Sequence[Leaf], copies: Mapping[str, np.ndarray], where: str) -> None:
    """Refuse copies that are of other arrays.

    Raises
    ------
    TypeError, ValueError
        Paths, shapes or dtypes differ.
    """
    keys = [leaf.key for leaf in found]
    if set(keys) != set(copies):
        raise ValueError(f"{where}: found other arrays than params has{differing(copies, keys)}")
    for key, name, array in found:
        if copies[key].shape != array.shape:
            raise ValueError(f"{where}[{key!r}]: found shape {copies[key].shape}, expected {array.shape} as {name} has")
        if copies[key].dtype != _kept_dtype(array):
            raise TypeError(
                f"{where}[{key!r}]: found dtype {copies[key].dtype}, expected {_kept_dtype(array)}, as {name} is "
                f"{dtype_name(array.dtype)}"
            )
