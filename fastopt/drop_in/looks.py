"""Where tensors are, and how they are laid out: looked at before each step."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from operator import attrgetter
from typing import Any

import torch

from ..arrays.libraries.dlpack import exchange_of
from ..arrays.libraries.torch import locating_function, offset_in_object
from ..backends import TensorKind, TensorReaders
from ..backends.choice import host_backend

_data_ptr: Any = torch.Tensor.data_ptr
_stride: Any = torch.Tensor.stride
_nbytes = attrgetter("nbytes")

#: Layouts, and addresses: each as bytes or as lists, which are equal to those of another look if nothing has changed.
Look = tuple[Any, Any]


@cache
def _readers() -> TensorReaders:
    """What reads tensors in C, all of them in one call: as far as torch is new enough."""
    if sys.implementation.name != "cpython":
        return None, None
    types, describe = (torch.Tensor, torch.nn.Parameter), exchange_of(torch.Tensor)
    return host_backend().tensor_readers(TensorKind(types, describe, offset_in_object(), locating_function()))


def strides_of(tensors: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """The strides of tensors, and their sizes in bytes."""
    return list(map(_stride, tensors)), list(map(_nbytes, tensors))


def look(tensors: tuple[Any, ...]) -> Look | None:
    """Looks at tensors; None where there is one without memory, or something else, among them."""
    read, _ = _readers()
    found = read and read(tensors)
    return _ask(tensors) if found is None else found


def _ask(tensors: tuple[Any, ...]) -> Look | None:
    """The same by asking each tensor."""
    try:
        addresses = list(map(_data_ptr, tensors))
    except (TypeError, RuntimeError):
        return None
    layouts = strides_of(tensors)
    return (layouts, addresses) if addresses.count(0) == layouts[1].count(0) else None


def places_of(tensors: tuple[Any, ...]) -> Any:
    """Read where all tensors are that are in lists, dicts, and dicts of dicts; None where each is to be asked."""
    _, read = _readers()
    return read and read(tensors)


def addresses_of(tensors: Sequence[Any]) -> list[int]:
    """The addresses of tensors.

    Raises
    ------
    TypeError, RuntimeError
        There is one without memory, or something else, among them.
    """
    return list(map(_data_ptr, tensors))
