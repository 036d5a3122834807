"""The global norm of torch's gradients, over a mesh too, and clipping by it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import increment_version

from .. import settings
from ..arrays.libraries import view
from ..backends import SquareSums
from ..backends.choice import choose_backend
from ..binding import norms
from ..checks import as_float, check_flag, wrong_value
from .gradients import rows_of
from .groups import place_of, read_params
from .placements import cuts_of, is_distributed, local_of, reduced


def norm_over_meshes(params: Sequence[Any], labels: Sequence[str], backend: SquareSums, threads: int) -> float:
    """The Euclidean norm of the gradients of all ranks: each shard counts once, and so does what ranks have alike.

    All ranks have the same bits: each adds the same numbers, exactly, and what is replicated is that of the first.
    """
    meshes = dict.fromkeys(p.device_mesh for p in params if is_distributed(p))
    first = next(iter(meshes))
    kinds: dict[Any, dict[tuple[bool, ...], list[tuple[Any, str]]]] = {mesh: {} for mesh in meshes}
    for p, label in zip(params, labels, strict=True):
        mesh = p.device_mesh if is_distributed(p) else first
        found = kinds[mesh].setdefault(cuts_of(p) if is_distributed(p) else (False,) * mesh.ndim, [])
        if p.grad is not None:
            found.append((local_of(p.grad), f"the gradient of {label}"))
    sums: list[float] = []
    for mesh, by_cut in kinds.items():
        own = [_squares_of(found, backend, threads) for found in by_cut.values()]
        sums += _sums_over(mesh, list(by_cut), own)
    return norms.root_of([np.array(sums)])


def _squares_of(found: Sequence[tuple[torch.Tensor, str]], backend: SquareSums, threads: int) -> float:
    names = [name for _, name in found]
    arrays = [rows_of(x, name) if x.is_sparse else view(x, name) for x, name in found]
    return norms.sum_of(norms.square_sums_of(norms.tables_of(arrays, names), backend, threads))


def _sums_over(mesh: Any, cuts: Sequence[tuple[bool, ...]], own: Sequence[float]) -> list[float]:
    """Each of a rank's `own` numbers summed over the dimensions of a mesh by which it is cut."""
    found = torch.tensor(own, dtype=torch.float64, device=mesh.device_type)
    for dim in range(mesh.ndim):
        parts = [torch.empty_like(found) for _ in range(mesh.size(dim))]
        torch.distributed.all_gather(parts, found, group=mesh.get_group(dim))
        found = torch.stack(parts)
    every = slice(None)
    return [
        norms.sum_of([found[(*(every if cut else 0 for cut in reversed(by)), k)].flatten().cpu().numpy()])
        for k, by in enumerate(cuts)
    ]


def _params_to_scale(parameters: Any) -> list[torch.Tensor]:
    """The parameters; gradients that cannot be scaled in place, negated lazily or as partial sums, are replaced."""
    given = [parameters] if isinstance(parameters, torch.Tensor) else read_params(parameters, "parameters", False)
    for i, p in enumerate(given):
        if p.grad is not None and p.grad.is_neg():
            p.grad = p.grad.resolve_neg()
        if is_distributed(p):
            reduced(p, f"parameters[{i}]")
    return given


def clip_grad_norm_(
    parameters: torch.Tensor | Iterable[torch.Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> torch.Tensor:
    """Scales gradients in place so that their global norm is at most `max_norm`: torch.nn.utils.clip_grad_norm_.

    ``optimizer.step(max_norm=...)`` has the same effect without a pass that writes the gradients.

    Parameters
    ----------
    parameters : tensor or iterable of tensors
        Those without a gradient are skipped.
    max_norm : float
        At least 0.
    norm_type : float
        2, the only one there is.
    error_if_nonfinite : bool
        Raises RuntimeError, and changes nothing, where the norm is not finite.
    foreach : bool, optional
        Accepted, and without effect.

    Returns
    -------
    torch.Tensor
        The norm before clipping, summed in float64.

    Raises
    ------
    TypeError, ValueError
        `norm_type` is another, `max_norm` no number >= 0, or something is no tensor.
    """
    if as_float(norm_type) != 2.0:
        raise wrong_value("norm_type", norm_type, "2.0 (others: torch.nn.utils.clip_grad_norm_)")
    norms.check_limit("max_norm", max_norm)
    error_if_nonfinite = check_flag("error_if_nonfinite", error_if_nonfinite)
    params = _params_to_scale(parameters)
    grads = [local_of(p.grad) for p in params if p.grad is not None]
    norm = None
    if any(map(is_distributed, params)):
        labels = [f"parameters[{i}]" for i in range(len(params))]
        norm = norm_over_meshes(params, labels, choose_backend(None, place_of(params)), settings.get_num_threads())
    if error_if_nonfinite and not math.isfinite(norms.global_norm(grads) if norm is None else norm):
        raise RuntimeError("the gradients' global norm is not finite, so they were not clipped")
    norm = norms.clip(grads, max_norm, norm)
    increment_version(grads)
    return grads[0].detach().new_tensor(norm) if grads else torch.tensor(norm)
