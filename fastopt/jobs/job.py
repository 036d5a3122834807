"""The data of a step: parameters' progress, tables of runs, rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from ..arrays.array import CPU, Array, Place
from ..arrays.blocks import BLOCK_BYTES, QUANT_BLOCK
from ..arrays.dtypes import CODES, DTYPES
from ..arrays.libraries.factors import Averaged, Workplace
from ..arrays.libraries.matrices import Room
from ..rules import GRADIENT, LibraryRule, Rule
from .storage import CLIP, ZERO_GRADS, Storage

if TYPE_CHECKING:
    from typing_extensions import Self

#: The last that can be counted.
MAX_STEP = 2**63 - 1


@dataclass
class Progress:
    """The step counts, scalars and hyper-parameters of a set of parameters under one rule, by parameter or by group.

    Backends read `hyper` and `factors`, and advance `steps` and `scalars` in place.
    """

    rule: Rule
    copies: int
    group: np.ndarray  # int32 [parameters]: the parameter's row of hyper
    steps: np.ndarray  # int64 [parameters]
    scalars: np.ndarray  # float64 [parameters, scalars]
    hyper: np.ndarray  # float64 [rows, copies, hyper-parameters]
    factors: np.ndarray  # float64 [parameters]: of gradients in this step, beside grad_scale

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
            np.ones(parameters),
        )

    @property
    def inputs(self) -> range:
        """The places of the rule's inputs among a tensor's arrays."""
        end = self.rule.count_arrays(self.copies)
        return range(end - len(self.rule.inputs), end)

    @property
    def read_only(self) -> tuple[int, ...]:
        """The places of arrays that a step reads only: the gradient, inputs."""
        return (GRADIENT, *self.inputs)

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
    """The rows of a parameter that a gradient is of: lookup i is of row ``indices[i]``.

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
        # Negative indices are the largest unsigned numbers: one pass finds all that are out of range.
        unsigned = self.indices.view(f"u{self.indices.itemsize}")
        if int(unsigned.max()) >= self.count:
            found, (of, name) = self.indices[unsigned.argmax()], self.names
            expected = f"0 to {self.count - 1}" if self.count else "none"
            raise ValueError(f"{name}: found index {found}, expected {expected}, as {of} has {self.count} rows")


#: The elements of a run whose squares are added up together: part of what a norm is.
NORM_BLOCK = 4096
#: What is added to a global norm that is divided by, as torch's clip_grad_norm_ has it.
NORM_EPS = 1e-6

#: Meanings of several lookups of one row.
DUPLICATES = ("sum", "sequential", "hogwild")


@dataclass(kw_only=True)
class _Job:
    """Tensors of one rule and dtype, and what their tables have in common."""

    progress: Progress
    dtype: np.dtype  # that of computing
    addresses: np.ndarray  # uint64 [..., arrays]: parameter, gradient, states, inputs, what storage adds, single states
    members: np.ndarray  # int32 [tensors]: the place of each in `progress`
    owners: list[Array] = field(repr=False)  # views that keep the arrays, and their memory in place
    storage: Storage | None = None  # None: every array is of the dtype
    elements: np.ndarray | None = None  # int64 [runs]: the number of the run's first element, where storage needs it
    place: Place = CPU  # of the first parameter

    @property
    def codes(self) -> tuple[int, ...]:
        """Storage codes of the arrays, but for those of one number: `fastopt.arrays.dtypes.CODES`."""
        if self.storage is not None:
            return self.storage.dtypes
        return (CODES[self.dtype],) * self.progress.rule.count_arrays(self.progress.copies)

    def clipping(self, value: float) -> Self:
        """Return the job whose update clips scaled gradients to magnitudes of at most `value`."""
        storage = self.storage or Storage(self.codes)
        return replace(self, storage=replace(storage, options=storage.options | CLIP, clip_value=value))

    @property
    def units(self) -> list[tuple[int, int]]:
        """Pairs of bytes and elements that they hold, for each array."""
        found = [DTYPES.get(code) for code in self.codes]
        return [(BLOCK_BYTES, QUANT_BLOCK) if dtype is None else (dtype.itemsize, 1) for dtype in found]


@dataclass(kw_only=True)
class DenseJob(_Job):
    """Whole tensors: a table of runs, each of elements at one distance."""

    strides: np.ndarray | None  # int64 [runs, arrays], in bytes; None: every run is contiguous
    offsets: np.ndarray  # int64 [runs + 1]
    tensor_of: np.ndarray  # int32 [runs]

    @property
    def size(self) -> int:
        """The elements that a step updates."""
        return int(self.offsets[-1])

    @property
    def address_table(self) -> np.ndarray:
        """The addresses by run and array, which can be written."""
        return self.addresses

    @property
    def run_members(self) -> np.ndarray:
        """The member that each run is of."""
        return self.members[self.tensor_of]

    def check_indices(self) -> None:
        """Checks nothing: it has no indices."""

    def zeroing(self) -> DenseJob:
        """The job whose update sets gradients to zero too."""
        storage = self.storage or Storage(self.codes)
        return replace(self, storage=replace(storage, options=storage.options | ZERO_GRADS))

    def of(self, chosen: np.ndarray) -> DenseJob | None:
        """The part of the job that belongs to some members, of which `chosen` has a bool for each; None: nothing."""
        tensors = chosen[self.members]
        if not tensors.any():
            return None
        runs = tensors[self.tensor_of]
        return replace(
            self,
            addresses=by_column(self.addresses[runs], self.place),
            strides=None if self.strides is None else self.strides[runs],
            offsets=offsets_of(np.diff(self.offsets)[runs]),
            tensor_of=(np.cumsum(tensors, dtype=np.int32) - 1)[self.tensor_of[runs]],
            members=self.members[tensors],
            elements=None if self.elements is None else self.elements[runs],
        )


@dataclass(kw_only=True)
class RowJob(_Job):
    """One tensor of which some rows have a gradient, or that a rule of rows updates.

    Its addresses are those of the arrays' first rows. Within a row elements are contiguous. Its gradient is as large as
    its lookups are many, and several of these may read a row of it: a step does not set it to zero.
    """

    strides: np.ndarray  # int64 [arrays]: the bytes from row to row
    rows: Rows

    @property
    def size(self) -> int:
        """The elements that a step updates, as often as they are named."""
        return int(self.rows.indices.size) * self.rows.width

    @property
    def address_table(self) -> np.ndarray:
        """The addresses by run, of which there is one, and array; they can be written."""
        return self.addresses.reshape(1, -1)

    @property
    def run_members(self) -> np.ndarray:
        """The member that its only run is of."""
        return self.members

    def check_indices(self) -> None:
        """Checks the indices again.

        Raises
        ------
        ValueError
            One is none of a row: it is named, with the range.
        """
        self.rows.check_indices()

    def zeroing(self) -> RowJob:
        """The job itself: its gradient is left for others to set to zero, once the step is done."""
        return self

    def of(self, chosen: np.ndarray) -> RowJob | None:
        """The job, with a table of its own, if it is of a member of which `chosen` has True."""
        return replace(self, addresses=self.addresses.copy()) if chosen[self.members[0]] else None


#: Tensors of one rule and dtype, as all backends take them.
Job: TypeAlias = DenseJob | RowJob


@dataclass(kw_only=True)
class MatrixJob:
    """One tensor under a `LibraryRule`: two jobs that backends do, and between them what its library does."""

    progress: Progress
    first: DenseJob  # its tables have the gradient
    last: DenseJob
    shape: tuple[int, ...]
    room: Room | Workplace
    matrix: Any  # what is between, as it lies in memory
    averaged: Averaged | None = None  # under a `FactoredRule`, of a tensor that has elements

    @property
    def members(self) -> np.ndarray:
        """The place of the matrix in `progress`."""
        return self.first.members

    @property
    def owners(self) -> list[Array]:
        """The views that keep the arrays, which both jobs share."""
        return self.first.owners

    @property
    def address_table(self) -> np.ndarray:
        """The addresses by run and array, the gradient's among them."""
        return self.first.address_table

    @property
    def run_members(self) -> np.ndarray:
        """The member that each run is of."""
        return self.first.run_members

    @property
    def units(self) -> list[tuple[int, int]]:
        """Pairs of bytes and elements that they hold, for each array."""
        return [*self.first.units, *self.last.units]

    def check_indices(self) -> None:
        """Checks nothing: it has no indices."""

    def clipping(self, value: float) -> MatrixJob:
        """The job whose first part clips scaled gradients to magnitudes of at most `value`."""
        return replace(self, first=self.first.clipping(value))

    def zeroing(self) -> MatrixJob:
        """The job whose first part sets the gradient to zero too."""
        return replace(self, first=self.first.zeroing())

    def of(self, chosen: np.ndarray) -> MatrixJob | None:
        """The job, with tables of its own, if it is of a member of which `chosen` has True."""
        first, last = self.first.of(chosen), self.last.of(chosen)
        return None if first is None or last is None else replace(self, first=first, last=last)

    def begin(self, grad_scale: float) -> tuple[tuple[float, ...], bool]:
        """Have both jobs' numbers be those of the step that begins.

        Returns
        -------
        tuple of float
            The numbers for `multiply`.
        bool
            True where the first job is to be done, for which the matrix between is zero now; else the middle reads the
            gradient itself, times `grad_scale`.
        """
        own, rule, i = self.progress, self.progress.rule, int(self.members[0])
        assert isinstance(rule, LibraryRule)
        ends = rule.ends(self.shape, int(own.steps[i]) + 1, own.hyper[own.group[i], 0].tolist())
        for job, values in ((self.first, ends.first), (self.last, ends.last)):
            job.progress.hyper[i, 0] = [values.get(name, 0.0) for name in job.progress.rule.row]
        self.first.progress.steps[i], self.first.progress.factors[i] = own.steps[i], own.factors[i]
        self.last.progress.factors[i] = ends.factor
        if self.averaged is not None and self._plain:
            up = ends.first["maximize"]
            scale = grad_scale * float(own.factors[i])
            self.averaged.read_at(int(self.first.addresses[0, GRADIENT]), scale if up else -scale)
            return ends.middle, False
        self.room.clear(self.matrix)
        return ends.middle, True

    @cached_property
    def _plain(self) -> bool:
        """Tell whether the gradient lies as the matrix between, and is what the first job makes, but for a factor."""
        first = self.first
        return first.storage is None and first.strides is None and len(first.offsets) == 2 and first.place == CPU

    def multiply(self, values: tuple[float, ...]) -> None:
        """Do what is between both jobs."""
        if isinstance(self.room, Room):
            self.room.apply(self.progress.rule.update, self.matrix, values)
        elif self.averaged is not None:
            factor = self.averaged.apply(self.progress.rule.update, values)
            self.last.progress.factors[int(self.members[0])] = factor


#: All that a step may consist of.
AnyJob: TypeAlias = Job | MatrixJob


@dataclass
class Gradients:
    """Arrays to be read, of one dtype, as a table of runs."""

    dtype: np.dtype
    addresses: np.ndarray
    strides: np.ndarray
    offsets: np.ndarray
    array_of: np.ndarray  # int32 [runs]: the array that the run is of
    places: np.ndarray  # int64 [arrays]: the place of each among those that were to be tabled
    owners: list[Array] = field(repr=False)
    place: Place = CPU


class Sum(NamedTuple):
    """A dense gradient that is the sum of several arrays, of the job's dtype and contiguous.

    Tables have the first of them, and the others are as far from it for every element. Behind array k the last two sums
    that are left are added ``joins[k]`` times.
    """

    distances: np.ndarray  # int64 [arrays]: bytes from the first one to each
    joins: np.ndarray  # int32 [arrays]


def by_column(addresses: np.ndarray, place: Place) -> np.ndarray:
    """A table of addresses as the backend wants it: in C a run's are together, on a CUDA device an array's are."""
    return addresses if place.kind == "cpu" else np.asfortranarray(addresses)


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Return the offsets of parts of these lengths, and the end of the last."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def blocks_of(offsets: np.ndarray) -> np.ndarray:
    """Return the number of blocks whose elements are added up together before each run, and of all."""
    return offsets_of(-(-np.diff(offsets) // NORM_BLOCK))
