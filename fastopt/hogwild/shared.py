"""Arrays in shared memory, which processes open by name."""

from __future__ import annotations

import _posixshmem  # what multiprocessing.shared_memory is made of
import json
import mmap
import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from multiprocessing import resource_tracker
from typing import Any

import numpy as np

from ..checks import wrong_type

ALIGN = 64  # bytes: no two arrays share a cache line
_MAGIC = b"fastopt1"
_PREFIX = struct.Struct("<8sQQ")  # magic, bytes of the header, bytes of the block
_KINDS = "biufc"


class SharedArrays(Mapping[str, np.ndarray]):
    """Named arrays, a parameter and its states say, in one block of shared memory: made by `create`, else by `open`.

    A mapping of names to NumPy arrays, in the order in which they were given; ``shared[name] = x`` writes into one.
    Processes that open the block see and write the same memory, without locks. It is pickled as its name: what another
    process gets is the same block, opened there. Leaving a ``with`` block closes it and, in the process that created
    it, unlinks it.

    Attributes
    ----------
    name : str
        What `open` takes, in any process of this machine.

    Examples
    --------
    >>> with SharedArrays.create(w=np.zeros(3), sum=np.zeros(3)) as shared:
    ...     with SharedArrays.open(shared.name) as again:
    ...         again["w"][1] = 5
    ...     shared["w"].tolist()
    [0.0, 5.0, 0.0]
    """

    # multiprocessing.shared_memory itself has three flaws here: before Python 3.13 a process that merely opened a block
    # removes it when it ends; memory that is not there is found out by SIGBUS; and arrays in use forbid close().

    def __init__(self, name: str, arrays: dict[str, np.ndarray], creator: int | None) -> None:
        self.name = name
        self._arrays: dict[str, np.ndarray] | None = arrays
        self._creator = creator  # the process that is to unlink it

    @classmethod
    def create(cls, /, **arrays: Any) -> SharedArrays:
        """Makes a block with copies of arrays.

        Parameters
        ----------
        **arrays : array_like
            At least one, of booleans, integers, floats or complex numbers, of any shape. Each begins at a multiple of
            64 bytes, C-contiguous.

        Raises
        ------
        ValueError
            There are no arrays.
        TypeError
            An array holds something else than numbers.
        OSError
            There is not enough shared memory: all of it is taken now, so that no write fails later.
        """
        if not arrays:
            raise ValueError("arrays: found none, expected at least one, as in SharedArrays.create(w=numpy.zeros(10))")
        sources = {name: np.asarray(array) for name, array in arrays.items()}
        for name, source in sources.items():
            if source.dtype.kind not in _KINDS:
                raise TypeError(f"{name}: found dtype {source.dtype}, expected booleans, integers, floats or complex")
        head = [[name, source.dtype.str, source.shape] for name, source in sources.items()]
        header = json.dumps(head).encode()
        offsets, size = _layout(len(header), [source.nbytes for source in sources.values()])
        block = f"/fastopt-{os.getpid()}-{secrets.token_hex(6)}"  # whose it is, for who finds it left over
        descriptor = _posixshmem.shm_open(block, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode=0o600)
        resource_tracker.register(block, "shared_memory")
        try:
            _allocate(descriptor, size)
            memory = mmap.mmap(descriptor, size)
        except BaseException:
            _unlink(block)
            raise
        finally:
            os.close(descriptor)
        memory[: _PREFIX.size + len(header)] = _PREFIX.pack(_MAGIC, len(header), size) + header
        views = {}
        for (name, source), offset in zip(sources.items(), offsets, strict=True):
            views[name] = np.ndarray(source.shape, source.dtype, memory, offset)
            views[name][...] = source
        return cls(block[1:], views, os.getpid())

    @classmethod
    def open(cls, name: str) -> SharedArrays:
        """The block of that name, made by `create` in this process or another.

        Raises
        ------
        TypeError
            `name` is no string.
        FileNotFoundError
            There is no block of that name.
        ValueError
            `name` cannot be a block's, or the block was not made by `create`, or is damaged.
        """
        if not isinstance(name, str):
            raise wrong_type("name", name, "a string")
        if not name or "/" in name or "\0" in name:
            raise ValueError(f"name: found {name!r}, expected the name of a SharedArrays")
        try:
            descriptor = _posixshmem.shm_open(f"/{name}", os.O_RDWR, mode=0o600)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"name: found {name!r}, expected the name of a SharedArrays; there is no shared memory of that name: "
                "it was never created, or unlinked"
            ) from None
        try:
            size = os.fstat(descriptor).st_size
            if size < _PREFIX.size:
                raise _foreign(name)
            memory = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        return cls(name, _views(name, memory, size), None)

    def close(self) -> None:
        """Lets go of the arrays. The memory itself goes once it is unlinked and no process has an array of it in use.

        An array taken out before stays valid: it keeps the memory.
        """
        self._arrays = None

    def unlink(self) -> None:
        """Removes the block's name: nobody can open it any more; who has it open keeps it. Once is enough."""
        _unlink(f"/{self.name}", registered=self._creator is not None)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._open()[name]

    def __setitem__(self, name: str, value: Any) -> None:
        """Writes into the array; ``shared[name] += 1`` comes here with the array itself, already written."""
        array = self._open()[name]
        if value is not array:
            array[...] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._open())

    def __len__(self) -> int:
        return len(self._open())

    def __enter__(self) -> SharedArrays:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        if self._creator == os.getpid():
            self.unlink()

    def __repr__(self) -> str:
        if self._arrays is None:
            return f"<SharedArrays {self.name}, closed>"
        arrays = ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in self._arrays.items())
        return f"<SharedArrays {self.name}, {arrays}>"

    def __reduce__(self) -> tuple[Any, ...]:
        self._open()
        return SharedArrays.open, (self.name,)

    def _open(self) -> dict[str, np.ndarray]:
        if self._arrays is None:
            raise ValueError(f"SharedArrays {self.name} is closed; SharedArrays.open(name) opens it again")
        return self._arrays


def _layout(header: int, sizes: list[int]) -> tuple[list[int], int]:
    """Return the offsets of arrays of these sizes, and the end of the last; in bytes."""
    offsets, end = [], _PREFIX.size + header
    for size in sizes:
        offsets.append(-(-end // ALIGN) * ALIGN)
        end = offsets[-1] + size
    return offsets, end


def _allocate(descriptor: int, size: int) -> None:
    os.ftruncate(descriptor, size)
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        message = f"{os.strerror(error.errno or 0)}: cannot take {size} bytes of shared memory; free some in /dev/shm"
        raise OSError(error.errno, message) from None


def _unlink(block: str, registered: bool = True) -> None:
    try:
        _posixshmem.shm_unlink(block)
    except FileNotFoundError:
        return  # who unlinked it told the tracker
    if registered:
        resource_tracker.unregister(block, "shared_memory")


def _views(name: str, memory: mmap.mmap, size: int) -> dict[str, np.ndarray]:
    magic, length, whole = _PREFIX.unpack_from(memory)
    if magic != _MAGIC or whole != size or length > size - _PREFIX.size:
        raise _foreign(name)
    try:
        head = json.loads(memory[_PREFIX.size : _PREFIX.size + length])
        kinds = [np.dtype(dtype) for _, dtype, _ in head]
        sizes = [
            int(np.prod(shape, dtype=object)) * kind.itemsize for kind, (_, _, shape) in zip(kinds, head, strict=True)
        ]
        offsets, end = _layout(length, sizes)
        if end != size or min(sizes, default=-1) < 0 or any(kind.kind not in _KINDS for kind in kinds):
            raise _foreign(name)
        return {
            key: np.ndarray(shape, kind, memory, offset)
            for (key, _, shape), kind, offset in zip(head, kinds, offsets, strict=True)
        }
    except (ValueError, TypeError, ArithmeticError, RecursionError, SyntaxError):
        raise _foreign(name) from None


def _foreign(name: str) -> ValueError:
    return ValueError(
        f"name: found {name!r}, which is no block of arrays that SharedArrays.create made, or a damaged one"
    )
