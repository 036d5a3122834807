"""States of a parameter: what they begin at, new ones, and their order in a backend's table."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from ..arrays.array import Array
from ..arrays.libraries import assign, new_array, same_library
from ..arrays.libraries.torch import detached
from ..jobs.tables import split_copies
from ..rules import Rule
from .blocks import blocks_of

_OF_PARAM = ("master", "ema")  # which begin at the parameter, whatever the rule


def initial(like: Any, param: Array, rule: Rule, name: str, dtype: np.dtype, begin: float) -> Any:
    """Return the beginning of a state of a parameter `like`: a number, or an array of the state's shape.

    Parameters
    ----------
    like : array
        The parameter.
    param : Array
        Its view.
    rule : Rule
        The rule.
    name : str
        The state's name.
    dtype : numpy.dtype
        In which the state is stored; that of bytes for blocks.
    begin : float
        The number that the rule's hyper-parameters say.
    """
    if name in _OF_PARAM or name in rule.at_parameter:
        return detached(like)
    if dtype != np.uint8 or begin == 0.0:
        return begin
    blocks = blocks_of(np.full(param.size, begin), name in rule.positive)
    return same_library(blocks, like)


def new_state(
    like: Any, param: Array, rule: Rule, name: str, dtype: np.dtype, shape: tuple[int, ...], begin: float
) -> Any:
    """A new state array as before the first step, of the parameter's kind: see `initial`."""
    if name not in (*_OF_PARAM, *rule.at_parameter) and (dtype != np.uint8 or begin == 0.0):
        return new_array(like, param, dtype, shape, begin)
    made = new_array(like, param, dtype, shape, 0)
    assign(made, initial(like, param, rule, name, dtype, begin))
    return made


def by_copy(rule: Rule, copies: int, views: Sequence[tuple[Array, str]], param: Array) -> list[Array]:
    """States in the order of a backend's table: all of the first copy, all of the second, ..., what storage adds."""
    if rule.vector is None:
        return list(map(itemgetter(0), views))
    own, added = views[: len(rule.states)], views[len(rule.states) :]
    split = [split_copies(rule, copies, array, param, name) for array, name in own]
    return [arrays[k] for k in range(copies) for arrays in split] + [array for array, _ in added]
