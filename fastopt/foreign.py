"""Internal. State dicts of the package prodigyopt, which has in its groups what Prodigy has in its states here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .checks import describe

_NUMBERS = ("d", "d_max", "d_numerator")  # of all tensors together
_THEIRS = frozenset((*_NUMBERS, "d_denom", "d_hat", "k", "slice_p", "fsdp_in_use"))
_FLAT = ("s", "p0")


def of_prodigyopt(groups: Sequence[Mapping[str, Any]]) -> bool:
    """True for saved groups that are prodigyopt's."""
    return bool(groups) and all(name in groups[0] for name in ("k", *_NUMBERS))


def from_prodigyopt(
    order: Sequence[Any],
    groups: Sequence[Mapping[str, Any]],
    states: Mapping[Any, Mapping[str, Any]],
    shapes: Sequence[tuple[int, ...]],
) -> tuple[list[Mapping[str, Any]], dict[Any, Mapping[str, Any]]]:
    """Groups and states as Prodigy's here are, of prodigyopt's.

    Parameters
    ----------
    order, groups, states
        From `fastopt.statedict.read_state_dict`.
    shapes : sequence of tuple of int
        Those of the parameters, in order.

    Raises
    ------
    ValueError
        Its sums are of some elements only.
    """
    for g, group in enumerate(groups):
        found = group.get("slice_p", 1)
        if found != 1:
            raise ValueError(
                f"state_dict['param_groups'][{g}]['slice_p']: found {describe(found)}, expected 1: here sums are of "
                "all elements, and its s and p0 are of some; go on with prodigyopt, or begin the states anew"
            )
    numbers = {name: np.array(groups[0][name], np.float64) for name in _NUMBERS}
    taken = dict(states)
    for index, shape in zip(order, shapes, strict=True):
        if not taken.get(index):
            continue
        state: dict[str, Any] = {
            "exp_avg": np.zeros(shape, np.float32),
            **taken[index],
            **numbers,
        }  # which it leaves out at beta1 = 0
        for name in _FLAT:
            value: Any = state.get(name)
            if getattr(value, "shape", None) == (math.prod(shape),):
                state[name] = value.reshape(shape)
            elif name == "p0" and getattr(value, "shape", None) == ():  # of a parameter that began at zero
                state[name] = np.full(shape, float(value), np.float32)
        taken[index] = state
    return [{key: x for key, x in group.items() if key not in _THEIRS} for group in groups], taken


def to_prodigyopt(
    groups: Sequence[Mapping[str, Any]], states: Mapping[Any, Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], dict[Any, dict[str, Any]]]:
    """Groups and states as prodigyopt has them, of Prodigy's here."""
    begun = next((state for state in states.values() if "d" in state), {})
    d0 = groups[0]["d0"] if groups else 0.0
    numbers = {name: float(begun.get(name, begins)) for name, begins in zip(_NUMBERS, (d0, d0, 0.0), strict=True)}
    given = []
    for group in groups:
        steps = (int(states[i]["step"]) for i in group["params"] if "step" in states.get(i, {}))
        growth = math.inf if group["growth_rate"] is None else group["growth_rate"]
        own = {"k": max(steps, default=0), "slice_p": 1, "fsdp_in_use": False, "growth_rate": growth}
        given.append({**group, **numbers, **own})
    return given, {i: _flat(state) for i, state in states.items()}


def _flat(state: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: x.reshape(-1) if name in _FLAT else x for name, x in state.items() if name not in _NUMBERS}
    return {**kept, "step": int(state["step"])} if "step" in state else kept
