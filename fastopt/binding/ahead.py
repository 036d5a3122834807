"""Parameters of Schedule-Free rules, moved between where gradients are taken and where they are to be evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..arrays.array import Array
from ..arrays.libraries import assign, new_array, to_host, view
from ..backends import Backend
from ..backends.matrices import prepare as prepare_all
from ..jobs.job import Progress
from ..jobs.storage import KAHAN, MASTER, StorageOptions
from ..jobs.tables import Tensor, make_jobs
from ..rules import RULES, Rule
from ..rules.base import parameters_of
from ..rules.hyper import hyper_row
from .blocks import from_blocks
from .options import Arguments

_BY = RULES["sgd"]  # p -= lr*g, with the first state in the gradient's place


class Apart(NamedTuple):
    """A parameter that is to be moved, by a multiple of its first state."""

    param: Any
    name: str
    rule: Rule
    states: Mapping[str, Any]  # its arrays
    stored: StorageOptions
    multiple: float


def way_of(arguments: Arguments, rule: Rule, group: Mapping[str, Any], t: int, train: bool) -> float:
    """The multiple of the first state by which a group's parameters are moved, to be evaluated or to `train`."""
    assert rule.ahead is not None
    values = arguments.values(rule, group, t)
    names = parameters_of(rule.ahead)
    ahead = rule.ahead(*(rule.hyper[name].check(name, values[name]) for name in names))
    return ahead if train else -ahead


def make_ready(backend: Backend, parameters: Sequence[Apart], real: np.dtype, threads: int) -> Callable[[], None]:
    """The move of parameters in place, with the bits that ``rounding`` keeps beside them, to be called once.

    Raises
    ------
    TypeError, ValueError
        An array cannot be written, or they are no longer what an optimizer can have; the message names it.
    """
    multiples = list(dict.fromkeys(apart.multiple for apart in parameters))
    sets = []
    for multiple in multiples:
        sets.append(Progress.of(_BY, 1, len(parameters), 1))
        values = {**_BY.defaults(), "lr": abs(multiple), "maximize": multiple > 0}
        sets[-1].hyper[0] = hyper_row(_BY, values, dtype=real)
    tensors, names = [], []
    for i, apart in enumerate(parameters):
        param = view(apart.param, apart.name)
        kept = [name for name in apart.states if name not in apart.rule.state_names and name != "ema"]
        arrays = [param, _first_state(apart, param), *(view(apart.states[name], name) for name in kept)]
        options = apart.stored.options(param) & (KAHAN | MASTER)
        tensors.append(Tensor(multiples.index(apart.multiple), i, arrays, options))
        names.append([apart.name, *[f"state of {apart.name}"] * (len(arrays) - 1)])
    run = prepare_all(make_jobs(sets, tensors, names), (), backend.prepare)
    return lambda: run(1.0, threads)


def _first_state(apart: Apart, param: Array) -> Array:
    """The view of a parameter's first state, or of its values where it is in blocks."""
    name = apart.rule.state_names[0]
    state = view(apart.states[name], name)
    if state.dtype != np.uint8:
        return state
    values = new_array(apart.param, param, np.dtype(np.float32), param.shape, 0)
    assign(values, from_blocks(to_host(state), name in apart.rule.positive, param))
    return view(values, name)
