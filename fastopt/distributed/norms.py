"""Internal. Sums of squares of gradients that are cut among ranks: those of the whole, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..arrays.libraries import view
from ..backends import SquareSums
from ..binding.norms import root_of
from ..jobs.job import NORM_BLOCK
from ..jobs.tables import make_gradients
from .world import World


class Portion(NamedTuple):
    """A rank's part of something: its elements, and where they begin in the whole."""

    begin: int
    values: np.ndarray


class Squares(NamedTuple):
    """The sums of squares of the blocks of wholes."""

    sums: np.ndarray
    of: np.ndarray  # the whole that each is of

    def norm(self) -> float:
        """The norm of all together."""
        return root_of([self.sums])

    def norms(self, count: int) -> np.ndarray:
        """The norm of each of so many wholes."""
        order = np.argsort(self.of, kind="stable")
        ends = np.searchsorted(self.of[order], np.arange(1, count))
        return np.array([root_of([own]) for own in np.split(self.sums[order], ends)])


def gathered_squares(portions: Sequence[Portion], world: World, backend: SquareSums, threads: int) -> Squares:
    """The sums of squares of the blocks of wholes, of each of which every rank has a portion, be it empty.

    A block that several ranks have parts of is put together first.
    """
    inner: list[np.ndarray] = []
    of_inner: list[int] = []
    edges: list[list[tuple[int, np.ndarray]]] = []  # of each whole: the block's number, and elements of it
    for i, (begin, values) in enumerate(portions):
        first = min(-begin % NORM_BLOCK, values.size)
        last = max((begin + values.size) // NORM_BLOCK * NORM_BLOCK - begin, first)
        if first < last:
            inner.append(values[first:last])
            of_inner.append(i)
        parts = [(0, first), (last, values.size)]
        edges.append([((begin + low) // NORM_BLOCK, values[low:high].copy()) for low, high in parts if low < high])
    told = world.all_gather((_squares(inner, of_inner, backend, threads), edges))
    joined: list[np.ndarray] = []
    of_joined: list[int] = []
    for i, parts_of_ranks in enumerate(zip(*(theirs for _, theirs in told), strict=True)):
        blocks: dict[int, list[np.ndarray]] = {}
        for number, values in (part for parts in parts_of_ranks for part in parts):
            blocks.setdefault(number, []).append(values)
        joined += [np.concatenate(values) for values in blocks.values()]
        of_joined += [i] * len(blocks)
    found = [*(theirs for theirs, _ in told), _squares(joined, of_joined, backend, threads)]
    return Squares(np.concatenate([own.sums for own in found]), np.concatenate([own.of for own in found]))


def _squares(arrays: Sequence[np.ndarray], of: Sequence[int], backend: SquareSums, threads: int) -> Squares:
    """The sums of squares of arrays, of each of which we are told what it is part of."""
    sums, wholes = [np.empty(0)], [np.empty(0, np.int64)]
    for table in make_gradients([view(array, "grads") for array in arrays], ["grads"] * len(arrays)):
        sums.append(backend.square_sums(table, threads))
        counts = -(-np.diff(table.offsets) // NORM_BLOCK)
        wholes.append(np.repeat(np.array(of)[table.places[table.array_of]], counts))
    return Squares(np.concatenate(sums), np.concatenate(wholes))
