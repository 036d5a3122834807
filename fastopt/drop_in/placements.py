"""Tensors distributed over a mesh (DTensor): their shards on this rank, and DTensors made of shards."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

_DTENSOR = "torch.distributed.tensor"  # takes a while to import: where nobody has, there are none


def is_distributed(x: Any) -> bool:
    """True for a DTensor."""
    module = sys.modules.get(_DTENSOR)
    return module is not None and isinstance(x, module.DTensor)


def local_of(x: Any) -> Any:
    """This rank's shard of a DTensor; anything else as it is."""
    if not is_distributed(x):
        return x
    local = x._local_tensor
    return local if type(local) is torch.Tensor or not hasattr(local, "wait") else local.wait()


def dim_of(placement: Any) -> int | None:
    """The dimension that a placement cuts; None for a replica."""
    return getattr(placement, "dim", None)


def cuts_of(p: Any) -> tuple[bool, ...]:
    """Tell of each dimension of a DTensor's mesh whether its ranks have different shards."""
    return tuple(dim_of(placement) is not None for placement in p.placements)


def _placed_as(p: Any, x: torch.Tensor) -> tuple[Any, ...]:
    """The placements of one of a parameter's states, which has more dimensions in front for copies."""
    lead = max(0, x.ndim - p.ndim)
    return tuple(map(_shifted, p.placements, [lead] * len(p.placements))) if lead else p.placements


def _shifted(placement: Any, lead: int) -> Any:
    dim = dim_of(placement)
    if dim is None:
        return placement
    factor = getattr(placement, "split_factor", None)
    return type(placement)(dim + lead) if factor is None else type(placement)(dim + lead, split_factor=factor)


def _box_of(p: Any) -> list[tuple[int, int]]:
    """Of each dimension of a DTensor the place and the length of this rank's shard."""
    box = [(0, n) for n in p.shape]
    # FSDP2 cuts what tensor parallelism has cut, and says so by a split factor.
    dims = sorted(range(p.device_mesh.ndim), key=lambda d: hasattr(p.placements[d], "split_factor"))
    for mesh_dim in dims:
        dim = dim_of(p.placements[mesh_dim])
        if dim is not None:
            begin, n = box[dim]
            most = -(-n // p.device_mesh.size(mesh_dim))
            before = min(n, most * p.device_mesh.get_local_rank(mesh_dim))
            box[dim] = begin + before, min(most, n - before)
    return box


def first_element(p: Any) -> int:
    """The number of elements in the shards before this rank's: its first element's number where rows are cut."""
    box = _box_of(p) if is_distributed(p) else []
    within = [length for _, length in box]
    return sum(math.prod(within[:dim]) * begin * math.prod(p.shape[dim + 1 :]) for dim, (begin, _) in enumerate(box))


def distributed_as(p: Any, x: torch.Tensor) -> Any:
    """The DTensor whose shard on this rank is `x`, one of a parameter's states."""
    lead = x.ndim - p.ndim
    shape = torch.Size((*x.shape[: max(0, lead)], *p.shape[: x.ndim]))
    stride = p.stride() if lead == 0 else torch.empty(shape, device="meta").stride()
    cls = sys.modules[_DTENSOR].DTensor
    with torch.no_grad():
        return cls.from_local(x, p.device_mesh, _placed_as(p, x), shape=shape, stride=stride)


def local_state(p: Any, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """This rank's shards of what was saved of a parameter: DTensors, or tensors that are whole."""
    return {name: _local_value(p, x) for name, x in state.items()} if is_distributed(p) else state


def _local_value(p: Any, x: Any) -> Any:
    if is_distributed(x):
        return local_of(x.redistribute(p.device_mesh, _placed_as(p, x)))
    if not isinstance(x, (torch.Tensor, np.ndarray)) or x.ndim == 0:
        return x
    lead = max(0, x.ndim - p.ndim)
    if tuple(x.shape[lead:]) != tuple(p.shape[: x.ndim]):  # what it is instead is told where it is checked
        return x
    cut = [slice(begin, begin + length) for begin, length in _box_of(p)]
    return x[(*[slice(None)] * lead, *cut[: x.ndim])]


def whole_state(p: Any, state: dict[str, Any], numbers: set[str]) -> dict[str, Any]:
    """A parameter's state, made of what there is on this rank: all but its `numbers` is distributed as it is."""
    if not is_distributed(p):
        return state
    return {
        name: x if name in numbers or not isinstance(x, torch.Tensor) else distributed_as(p, x)
        for name, x in state.items()
    }


def reduced(p: Any, label: str) -> Any:
    """A distributed parameter's gradient, with the parameter's placements: another one, as a partial sum, is replaced.

    Raises
    ------
    TypeError
        It is no DTensor.
    """
    grad = p.grad
    if grad is None:
        return None
    if not is_distributed(grad):
        raise TypeError(f"the gradient of {label}: found a plain tensor, expected a DTensor as {label} is one")
    if grad.placements != p.placements or grad.device_mesh != p.device_mesh:
        with torch.no_grad():
            grad = p.grad = grad.redistribute(p.device_mesh, p.placements)
    return grad
