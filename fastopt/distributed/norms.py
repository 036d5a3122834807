"""Internal. Sums of squares of gradients that are cut among ranks: those of the whole, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..arrays.libraries import view
from ..backends import SquareSums
from ..binding.norms import square_sums_of
from ..jobs.job import NORM_BLOCK
from ..jobs.tables import make_gradients
from .world import World


class Portion(NamedTuple):
    """A rank's part of something: its elements, and where they begin in the whole."""

    begin: int
    values: np.ndarray


def gathered_square_sums(
    portions: Sequence[Portion], world: World, backend: SquareSums, threads: int
) -> list[np.ndarray]:
    """The sums of squares of the blocks of wholes, of each of which every rank has a portion, be it empty.

    A block that several ranks have parts of is put together first.
    """
    inner: list[np.ndarray] = []
    edges: list[list[tuple[int, np.ndarray]]] = []  # of each whole: the block's number, and elements of it
    for begin, values in portions:
        first = min(-begin % NORM_BLOCK, values.size)
        last = max((begin + values.size) // NORM_BLOCK * NORM_BLOCK - begin, first)
        if first < last:
            inner.append(values[first:last])
        parts = [(0, first), (last, values.size)]
        edges.append([((begin + low) // NORM_BLOCK, values[low:high].copy()) for low, high in parts if low < high])
    found = square_sums_of(_tables(inner), backend, threads)
    told = world.all_gather((found, edges))
    sums = [own for theirs, _ in told for own in theirs]
    joined: list[np.ndarray] = []
    for parts_of_ranks in zip(*(theirs for _, theirs in told), strict=True):
        blocks: dict[int, list[np.ndarray]] = {}
        for number, values in (part for parts in parts_of_ranks for part in parts):
            blocks.setdefault(number, []).append(values)
        joined += [np.concatenate(values) for values in blocks.values()]
    return sums + square_sums_of(_tables(joined), backend, threads)


def _tables(arrays: Sequence[np.ndarray]) -> list:
    views = [view(array, "grads") for array in arrays]
    return make_gradients(views, ["grads"] * len(views))
