"""Internal. The interface of a backend; each room in this folder is one, and `choice` takes one of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ..arrays.array import Array
from ..arrays.checks import Written
from ..jobs.job import Gradients, Job, RowJob, Sum

#: Layouts of arrays, which can be compared and be keys, and their addresses as bytes of uint64.
Look = tuple[Hashable, bytes]


class TensorKind(NamedTuple):
    """What is known of a library's tensors, for C.

    Attributes
    ----------
    types : tuple of type
        The types of plain ones.
    describe : int
        The address of the function of DLPack's exchange API that describes one; 0: none.
    offset : int
        Where in a tensor's object the library's own is.
    locate : int
        The address of the library's function for where the memory of one is; 0: none.
    """

    types: tuple[type, type]
    describe: int
    offset: int
    locate: int


#: What reads arrays or tensors by one call; None from it says nothing.
Reader = Callable[[tuple[Any, ...]], Look | None]
#: Readers of tensors, None where each is to be asked. The first looks at tensors, and says nothing where one has no
#: memory, or is something else. The second finds where tensors are that are in lists, dicts, and dicts of dicts.
TensorReaders = tuple[Reader | None, Reader | None]


class Runner(Protocol):
    """Jobs made ready by a backend."""

    def __call__(self, grad_scale: Any, threads: int) -> None:
        """Do one step: advance step counts, fold, update. Once begun it is done whole.

        `grad_scale` is a float, or what the backend's `prepare_norms` gave.

        Raises
        ------
        ValueError
            An array to be written has become read-only, or an index is none of a row; nothing has been done.
        """


@runtime_checkable
class RowRunner(Runner, Protocol):
    """Jobs made ready by a backend that reads anew which rows they are of."""

    def put_rows(self, job: int) -> None:
        """Take over the table of a job's rows, of the same kind as it was, and how many they are now.

        Addresses and strides are read where they are at each step.
        """


@runtime_checkable
class PartRunner(Runner, Protocol):
    """Jobs made ready on the CPU, where a step can be done in parts."""

    def advance(self, grad_scale: float) -> None:
        """Do the first part of a step: advance step counts and fold."""

    def update(self, job: int, begin: int, end: int, threads: int) -> None:
        """Do some of the rest: update elements of a job, of tensors in blocks whole blocks."""


class CapturedRunner(Runner, Protocol):
    """Jobs made ready for a CUDA graph to record, with what its replays read on the device.

    Attributes
    ----------
    rates : numpy.ndarray, int64, shape (groups, 2)
        The addresses of learning rates on the device, and their bytes; zeros for others.
    scale, skip : int
        The addresses of float32 numbers: the divisor of gradients, and not 0 to do nothing; 0: none.
    """

    rates: np.ndarray
    scale: int
    skip: int


class PrepareCaptured(Protocol):
    """A backend's `prepare_captured`."""

    def __call__(self, jobs: Sequence[Job], steps: int, scalars: Mapping[int, int]) -> CapturedRunner:
        """Make jobs ready to be recorded; `steps` and `scalars` are addresses of counts and of each set's scalars."""


class PrepareSums(Protocol):
    """A backend's `prepare_sums`."""

    def __call__(self, jobs: Sequence[Job], written: Written, sums: Sequence[Sum]) -> PartRunner:
        """Make jobs ready whose gradients are sums, which are added up within the pass."""


class DeviceScale(Protocol):
    """The scale of a step's gradients, and whether the step is skipped, as a device finds them."""

    @property
    def counted(self) -> bool:
        """True while the host counts a step that may have been skipped."""

    def norm(self) -> float:
        """The global norm, waited for."""

    def skipped(self) -> bool:
        """Whether the step was skipped, waited for: then it is not counted any longer."""

    def undoing(self, undo: Callable[[], None]) -> None:
        """Has something called once the step is found to have been skipped."""


class Norms(Protocol):
    """Limits of gradients' norms, on a device."""

    def __call__(self, scale: float, limit: float | None, check: bool, amp: tuple[int, int] = (0, 0)) -> DeviceScale:
        """Have the device find the scale: `check` skips what is not finite, `amp` is as `CapturedRunner` has it."""


class PrepareNorms(Protocol):
    """A backend's `prepare_norms`."""

    def __call__(
        self, tables: Sequence[Gradients | RowJob], parameters: Sequence[np.ndarray], each: bool, recorded: bool
    ) -> Norms:
        """Make gradients ready, of parameters of these numbers: for one norm or one of each, for graphs too or not.

        A job of rows stands for the sums of the rows of its gradient.
        """


class SquareSums(Protocol):
    """The reader of gradients for a norm."""

    def square_sums(self, grads: Gradients, threads: int) -> np.ndarray:
        """Return the sums of squares of blocks of a set of gradients, in order."""


class Backend(SquareSums, Protocol):
    """The functions of a backend's module, for arrays where it works."""

    @property
    def prepare_captured(self) -> PrepareCaptured | None:
        """The maker of steps that a CUDA graph records; None on the CPU."""

    @property
    def prepare_sums(self) -> PrepareSums | None:
        """The maker of steps that add gradients up; None where there are none."""

    @property
    def prepare_norms(self) -> PrepareNorms | None:
        """The maker of limits that no host waits for; None on the CPU."""

    def prepare(self, jobs: Sequence[Job], written: Written = ()) -> Runner:
        """Make jobs ready to be run, any number of times, unless an array of NumPy that they write is read-only."""

    def scale(self, array: Array, factor: float) -> None:
        """Multiply all elements of an array by a number, in place."""

    def find_bags(self, offsets: Array, bags: int, lookups: int, mean: np.dtype | None) -> tuple[Any, Any]:
        """Return the bag of each lookup, and for means of a dtype one over its bag's size.

        Raises
        ------
        ValueError
            The offsets are not those of so many bags.
        """


class HostBackend(Backend, Protocol):
    """The functions of a backend for arrays on the CPU."""

    def prepare(self, jobs: Sequence[Job], written: Written = ()) -> PartRunner:
        """Make jobs ready to be run, whole or in parts, any number of times."""

    def ieee_arithmetic(self) -> AbstractContextManager[None]:
        """Have this thread round to nearest and keep subnormal numbers until the block's end."""

    def array_reader(self) -> Reader | None:
        """Return what reads layouts and addresses of NumPy arrays; None where each is to be asked."""

    def tensor_readers(self, kind: TensorKind) -> TensorReaders:
        """Return what reads tensors."""
