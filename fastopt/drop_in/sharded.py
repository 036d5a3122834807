"""Optimizers of parameters that FSDP2 or tensor parallelism distributes over a mesh: each rank updates its shards."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import accumulate
from operator import is_
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import increment_version

from .. import settings
from ..binding.norms import Limits, clipped
from ..jobs.storage import StorageOptions
from .clipping import norm_over_meshes
from .groups import Groups, Stepping, first_places, is_capturable, labels_of, params_of
from .placements import dim_of, first_element, is_distributed, local_of, reduced, whole_state
from .step import Bound

_BLOCKS = np.dtype(np.uint8)
_OWN = fields(StorageOptions)


@dataclass(frozen=True)
class _Numbered(StorageOptions):
    """Storage arguments with the numbers of the elements that shards begin at."""

    firsts: tuple[int, ...] = ()

    def elements(self, sizes: Any) -> list[int]:
        """The number of the first element of each shard: as in one process where rows are cut, alike in replicas."""
        return list(self.firsts)


class Shards:
    """An optimizer's parameters, groups and states as this rank has them: what a step takes for an optimizer.

    Parameters
    ----------
    optimizer : Groups
        The optimizer, some of whose parameters are DTensors.

    Raises
    ------
    TypeError, ValueError
        A parameter or a group is what cannot be distributed; the message names it.
    """

    def __init__(self, optimizer: Groups) -> None:
        self._arguments, self.defaults = optimizer._arguments, optimizer.defaults
        self._backend_name, self._threads = optimizer._backend_name, optimizer._threads
        groups = optimizer.param_groups
        labels = labels_of(groups)
        self._check(optimizer, labels)
        params = params_of(groups)
        firsts = first_places(params)[0]
        self.params = [params[i] for i in firsts]
        self.labels = [labels[i] for i in firsts]
        # Of their own, for a gradient is put beside each; they share memory and version.
        self._own = {id(p): local_of(p).detach() if is_distributed(p) else p for p in self.params}
        self._distributed = [
            (p, self._own[id(p)], label) for p, label in zip(self.params, self.labels, strict=True) if is_distributed(p)
        ]
        self.param_groups = self._groups(groups)
        self.state: Any = defaultdict(dict)
        for p in self.params:
            state = optimizer.state.get(p)
            if state:
                self.state[self._own[id(p)]] = {name: local_of(x) for name, x in state.items()}
        self._storage = self._numbered(optimizer)
        self._seen = self._look(optimizer)

    @classmethod
    def of(cls, optimizer: Groups) -> Shards | None:
        """The shards of an optimizer; None if no parameter is distributed."""
        return cls(optimizer) if any(map(is_distributed, params_of(optimizer.param_groups))) else None

    def _check(self, optimizer: Groups, labels: Sequence[str]) -> None:
        """Checks that the parameters can be updated by shards."""
        named = iter(labels)
        for group in optimizer.param_groups:
            found = [(p, label) for p, label in zip(group["params"], named, strict=False) if is_distributed(p)]
            if not found:
                continue
            label = found[0][1]
            if is_capturable([group]):
                raise ValueError(f"capturable: found True, expected False, as {label} is distributed over a mesh")
            if optimizer._storage.of_group(group).state_dtype == _BLOCKS:
                raise ValueError(
                    f"state_dtype: found '8bit', expected another, as {label} is distributed: its shards would cut "
                    "blocks of states"
                )
            rule = optimizer._arguments.rule(group)
            for p, label in found:
                expected, allowed = "Shard or Replicate()", {None, *range(p.ndim)}
                if rule.by_row:
                    expected, allowed = "Shard(0) or Replicate(), for states are by row", {None, 0}
                elif rule.whole:
                    expected, allowed = f"Replicate(), for {rule.whole}", {None}
                partial = any(placement.is_partial() for placement in p.placements)
                if partial or not allowed.issuperset(map(dim_of, p.placements)):
                    raise ValueError(f"{label}: found placements {p.placements}, expected {expected}")

    def agree(self, optimizer: Groups) -> None:
        """Check that all ranks of each mesh round by the same numbers, which all of them call.

        Raises
        ------
        ValueError
            One has another argument; raised in all of the mesh.
        """
        names = {"noise": "gradient_noise"}
        own = {names.get(field.name, field.name): getattr(optimizer._storage, field.name) for field in _OWN}
        distributed: list[Any] = [p for p, _, _ in self._distributed]
        for mesh in dict.fromkeys(p.device_mesh for p in distributed):
            told = [own]
            for dim in range(mesh.ndim):
                parts: list[Any] = [None] * mesh.size(dim)
                torch.distributed.all_gather_object(parts, told, group=mesh.get_group(dim))
                told = [one for part in parts for one in part]
            for name, expected in told[0].items():
                for theirs in told:
                    if theirs[name] != expected:
                        raise ValueError(
                            f"{name}: found {theirs[name]} in one rank and {expected} in another, expected the same in "
                            "all, as parameters are distributed over them"
                        )

    def _groups(self, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{**group, "params": [self._own[id(p)] for p in group["params"]]} for group in groups]

    def _numbered(self, optimizer: Groups) -> StorageOptions:
        storage = optimizer._storage
        before = accumulate((p.numel() for p in self.params), initial=storage.first_element)
        firsts = tuple(n + first_element(p) for n, p in zip(before, self.params, strict=False))
        return _Numbered(**{field.name: getattr(storage, field.name) for field in _OWN}, firsts=firsts)

    def _look(self, optimizer: Groups) -> list[Any]:
        """All that can be replaced."""
        params = params_of(optimizer.param_groups)
        found = [*params, *map(local_of, params)]
        for p in params:
            state = optimizer.state.get(p) or {}
            found += [*state, *state.values()]
        return found

    @contextmanager
    def gradients(self, optimizer: Groups) -> Iterator[None]:
        """Has each shard its gradient, and each group its values, while a step takes them over."""
        self.param_groups = self._groups(optimizer.param_groups)
        try:
            for p, own, label in self._distributed:
                own.grad = local_of(reduced(p, label))
            yield
        finally:
            for _, own, _ in self._distributed:
                own.grad = None

    def fit(self, optimizer: Groups, bound: Bound) -> bool:
        """Take over gradients and hyper-parameters of this step; False where tensors must be bound anew."""
        found = self._look(optimizer)
        if len(found) != len(self._seen) or not all(map(is_, found, self._seen)):
            return False
        with self.gradients(optimizer):
            return bound.fits(self, is_capturable(optimizer.param_groups))

    def run(
        self,
        optimizer: Stepping,
        bound: Bound,
        scale: float,
        limits: Limits | None,
        skip_nonfinite: bool,
        zero_grads: bool,
        amp: tuple[Any, Any],
    ) -> None:
        """Does the step, as `Bound.run`, by the norm of all ranks' gradients.

        Raises
        ------
        ValueError
            Each gradient's own norm has a limit.
        """
        max_norm = None if limits is None else limits.max_norm
        if limits is not None:
            if limits.clip_norm is not None:
                raise ValueError(
                    f"clip_norm: found {limits.clip_norm}, expected None for parameters that are distributed; their "
                    "global norm has max_norm"
                )
            limits = limits._replace(max_norm=None)
        if max_norm is not None or skip_nonfinite:
            limit = math.inf if max_norm is None else max_norm
            norm = norm_over_meshes(self.params, self.labels, bound.backend, self._threads or settings.threads)
            optimizer._last_skipped = skip_nonfinite and not math.isfinite(norm)
            clipped_scale, norm = clipped(scale, norm, limit)
            if max_norm is not None:
                scale, optimizer._last_norm = clipped_scale, norm
            if optimizer._last_skipped:
                bound.let_go()
                return
        bound.run(optimizer, scale, limits, False, zero_grads, amp, False)
        increment_version([p for p, _, _ in self._distributed if p.grad is not None])

    def put_states(self, optimizer: Groups) -> None:
        """Gives an optimizer the states that shards have been given."""
        numbers = {"step", *(name for rule in self._arguments.rules for name in rule.scalars)}
        for p in self.params:
            made = self.state.get(self._own[id(p)])
            if not made:
                continue
            kept = optimizer.state[p]
            for name, x in made.items():
                if name not in kept or local_of(kept[name]) is not x:
                    kept[name] = whole_state(p, {name: x}, numbers)[name]
        self._seen = self._look(optimizer)
