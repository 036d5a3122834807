"""The data of a step: parameters' progress, tables of runs, rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..arrays.array import CPU, Array, Place
from ..arrays.blocks import BLOCK_BYTES, QUANT_BLOCK
from ..arrays.dtypes import CODES, DTYPES
from ..rules import Rule
from .storage import Storage

#: The last that can be counted.
MAX_STEP = 2**63 - 1


@dataclass
class Progress:
    """The step counts, scalars and hyper-parameters of a set of parameters under one rule, by parameter or by group.

    Backends read `hyper` and advance `steps` and `scalars` in place.
    """

    rule: Rule
    copies: int
    group: np.ndarray  # int32 [parameters]: the parameter's row of hyper
    steps: np.ndarray  # int64 [parameters]
    scalars: np.ndarray  # float64 [parameters, scalars]
    hyper: np.ndarray  # float64 [rows, copies, hyper-parameters]

    @classmethod
    def of(cls, rule: Rule, copies: int, parameters: int, rows: int, steps: np.ndarray | None = None) -> Progress:
        """Parameters that have made no step."""
        return cls(
            rule,
            copies,
            np.zeros(parameters, np.int32),
            np.zeros(parameters, np.int64) if steps is None else steps,
            np.tile(np.array(list(rule.scalars.values())), (parameters, 1)),
            np.zeros((rows, copies, len(rule.row))),
        )

    def check_steps(self) -> None:
        """Check that another step of every parameter can be counted.

        Raises
        ------
        ValueError
            One has done as many as can be, or fewer than none.
        """
        for done in self.steps.tolist():
            if not 0 <= done < MAX_STEP:
                raise ValueError(f"step: found {done} steps done, expected 0 to {MAX_STEP - 1}, to count another")


@dataclass
class Rows:
    """Which rows of a parameter a gradient is of: lookup i is of row ``indices[i]``.

    The tables are NumPy's on the CPU, and on a CUDA device `fastopt.arrays.array.Array`.
    """

    count: int  # of the parameter's rows
    width: int  # elements of a row
    indices: Any  # int32 or int64 [lookups]
    duplicates: int  # the place in DUPLICATES
    source: Any = None  # int64 [lookups]: the gradient's row that each has; None: its own
    weights: Any = None  # of the job's dtype, [lookups]
    names: tuple[str, str] = ("param", "grad")  # what the caller calls parameter and gradient

    def check_indices(self) -> None:
        """Check that the indices, on the CPU, are those of rows.

        Raises
        ------
        ValueError
            One is not: it is named, with the range.
        """
        if not self.indices.size:
            return
        # As unsigned numbers negative ones are the largest: one pass finds whatever is out of range.
        unsigned = self.indices.view(f"u{self.indices.itemsize}")
        if int(unsigned.max()) >= self.count:
            found, (of, name) = self.indices[unsigned.argmax()], self.names
            expected = f"0 to {self.count - 1}" if self.count else "none"
            raise ValueError(f"{name}: found index {found}, expected {expected}, as {of} has {self.count} rows")


#: The elements of a run whose squares are added up together: part of what a norm is.
NORM_BLOCK = 4096

#: What several lookups of one row can mean.
DUPLICATES = ("sum", "sequential", "hogwild")


@dataclass
class Job:
    """Tensors of one rule and dtype, as what all backends take: a table of runs.

    With `rows` it is one tensor of which some rows have a gradient: the only run's addresses are those of the arrays'
    first rows and its strides those from row to row; within a row elements are contiguous.
    """

    progress: Progress
    dtype: np.dtype  # that of computing
    addresses: np.ndarray  # uint64 [runs, arrays]: parameter, gradient, states, what storage adds
    strides: np.ndarray | None  # int64 [runs, arrays], in bytes; None: every run is contiguous
    offsets: np.ndarray  # int64 [runs + 1]
    tensor_of: np.ndarray  # int32 [runs]
    members: np.ndarray  # int32 [tensors]: the place of each in `progress`
    owners: list[Array] = field(repr=False)  # views that keep the arrays, and their memory in place
    rows: Rows | None = None
    storage: Storage | None = None  # None: every array is of the dtype
    elements: np.ndarray | None = None  # int64 [runs]: the number of the run's first element, where storage needs it
    place: Place = CPU  # of the first parameter

    @property
    def codes(self) -> tuple[int, ...]:
        """Storage codes of the arrays: `fastopt.arrays.dtypes.CODES`."""
        if self.storage is not None:
            return self.storage.dtypes
        return (CODES[self.dtype],) * (2 + self.progress.copies * len(self.progress.rule.states))

    @property
    def units(self) -> list[tuple[int, int]]:
        """Pairs of bytes and elements that they hold, for each array."""
        return [(BLOCK_BYTES, QUANT_BLOCK) if code not in DTYPES else (DTYPES[code].itemsize, 1) for code in self.codes]

    def with_option(self, option: int) -> Job:
        """Copy the job with one more storage option."""
        storage = self.storage or Storage(self.codes)
        return replace(self, storage=replace(storage, options=storage.options | option))

    def of(self, chosen: np.ndarray) -> Job:
        """The part of the job that belongs to some parameters, of which `chosen` has a bool for each."""
        tensors = chosen[self.members]
        runs = tensors[self.tensor_of]
        return Job(
            self.progress,
            self.dtype,
            by_column(self.addresses[runs], self.place),
            None if self.strides is None else self.strides[runs],
            offsets_of(np.diff(self.offsets)[runs]),
            (np.cumsum(tensors, dtype=np.int32) - 1)[self.tensor_of[runs]],
            self.members[tensors],
            self.owners,
            self.rows,
            self.storage,
            None if self.elements is None else self.elements[runs],
            self.place,
        )

    def gradients(self) -> Gradients:
        """Its gradients alone."""
        dtype = DTYPES[self.codes[1]]
        strides = np.full_like(self.addresses, dtype.itemsize, np.int64) if self.strides is None else self.strides
        tables = self.addresses[:, 1:2].copy(), strides[:, 1:2].copy()
        return Gradients(dtype, *tables, self.offsets, self.owners, self.place)


@dataclass
class Gradients:
    """Arrays to be read, of one dtype, as a table of runs."""

    dtype: np.dtype
    addresses: np.ndarray
    strides: np.ndarray
    offsets: np.ndarray
    owners: list[Array] = field(repr=False)
    place: Place = CPU


def by_column(addresses: np.ndarray, place: Place) -> np.ndarray:
    """A table of addresses as the backend wants it: in C a run's are together, on a CUDA device an array's are."""
    return addresses if place.kind == "cpu" else np.asfortranarray(addresses)


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Return the offsets of parts of these lengths, and the end of the last."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
