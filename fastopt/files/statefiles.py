"""States in files: memory maps in a directory, which says of itself whether all of it is of one step."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import math
import mmap
import os
import shutil
import stat
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from .._version import __version__
from ..backends import PartRunner, Runner
from ..checks import describe, wrong_type, wrong_value
from ..jobs.job import Job
from . import paging

FORMAT = 1  # of the directory: another number for what these lines could not read
_MANIFEST, _STATES, _PROGRESS = "manifest.json", "states", "progress"
_MARKS = np.dtype([("begun", np.int64), ("done", np.int64), ("synced", np.int64), ("boot", "S40")])
_COUNTS = 2**62  # above any step count
_MOST = 1 << 20  # bytes that a manifest may have anyway
_LINE, _PAGE = 64, 4096  # small arrays share pages, but no cache lines
_REMEDY = "choose another directory, or remove this one to begin anew"


@dataclass(frozen=True)
class StateArray:
    """A state that is to be in a file.

    Attributes
    ----------
    name : str
        What the optimizer calls it.
    kind : str
        What it holds, ``"bfloat16"`` or ``"8bit"`` say: a directory is resumed only with states of the same kinds.
    dtype : numpy.dtype
        What it is mapped as.
    shape : tuple of int
        Its shape.
    initial : number or numpy.ndarray
        What it begins at.
    order : tuple of int, optional
        Its axes from the outermost in memory to the innermost; by default C's order.
    """

    name: str
    kind: str
    dtype: np.dtype
    shape: tuple[int, ...]
    initial: Any = 0.0
    order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ParameterStates:
    """The states of one parameter."""

    rule: str
    shape: tuple[int, ...]  # the parameter's
    states: tuple[StateArray, ...]


class StateFiles:
    """States in a directory, and the marks that tell whether a step broke off there.

    A new or empty directory begins anew; one that holds whole states of the same rules, shapes and kinds is resumed.

    Parameters
    ----------
    directory : str or path-like
        A directory of this optimizer's own; it is made if there is none.
    parameters : sequence of ParameterStates
        What there is to keep.
    counters : sequence of numpy.ndarray
        Small arrays beside the states that a step advances, step counts say. `update` keeps them with the states, and
        resuming a directory fills them.
    memory : int, optional
        At most so many bytes of states, and of other maps of files that a step uses, are to be in memory; by default as
        many as the system sees fit. In an update it is the caller who keeps to it, with `pager`.
    drawn : mapping, optional
        What the optimizer draws at random, by name, in plain data: a directory that tells of other is not resumed.

    Attributes
    ----------
    arrays : list of dict of str to numpy.ndarray
        For each parameter its states by name, as maps of the file.
    resumed : bool
        Whether the directory held them already.
    pager : fastopt.files.paging.Pager or None
        What keeps to `memory`, if there is such a bound.

    Raises
    ------
    TypeError, ValueError
        The directory has something else in it, states of others, states that a crash left half changed, or it is in
        use. Nothing in it has changed.
    OSError
        The directory cannot be written, or the disk has no room. What was made has been removed.
    """

    # All states are in one file, however many parameters there are: one descriptor, one mapping, and the disk's room
    # taken at once.
    #
    # After a crash: an update stores into memory maps, in this order: begun = t; the states and counters;
    # done = t. What a process that is killed has stored stays in the system's cache, so that begun == done tells
    # whether the update is whole, and no update waits for the disk. A system that fails loses what it had not written
    # yet, in any order. Then only `sync` vouches: it has everything written to the disk, and only then synced = done;
    # the first update after it has begun = t written before it changes anything else. That a system has failed, or was
    # restarted, since an update that was not synced is seen by the number of its boot.

    def __init__(
        self,
        directory: Any,
        parameters: Sequence[ParameterStates],
        counters: Sequence[np.ndarray],
        memory: int | None = None,
        drawn: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        if not isinstance(directory, (str, bytes, os.PathLike)):
            raise wrong_type("state_dir", directory, "a path")
        directory = os.fsdecode(directory)
        if not directory or "\0" in directory:
            raise wrong_value("state_dir", directory, "the path of a directory, '.' for the present one")
        if memory is not None:
            memory = paging.check_memory(memory)
        self._folder = Path(directory).absolute()
        self._counters = counters
        self._busy = threading.Lock()
        self._failure: BaseException | None = None
        manifest = {**_describe(parameters, counters), "drawn": dict(drawn)}
        made: list[Path] = []
        self._files: list[int] = []
        try:
            with _explained(self._folder, manifest["bytes"]):
                if not self._folder.is_dir():
                    for folder in [folder for folder in self._folder.parents if not folder.exists()][::-1]:
                        folder.mkdir(exist_ok=True)
                        made.append(folder)
                    self._folder.mkdir()
                    made.append(self._folder)
                self.resumed = self._holds(manifest)
                self._open(manifest["bytes"], made)
                self._map(parameters, manifest, memory)
                if self.resumed:
                    self._check_marks()
                    self._check_counters()
                    for own, kept in zip(counters, self._kept, strict=True):
                        own[...] = kept
                else:
                    self._fill(parameters)
                    self._finish(manifest, made)
        except BaseException:
            _release(self._files)
            for path in reversed(made):
                with suppress(OSError):
                    path.rmdir() if path.is_dir() else path.unlink()
            raise
        self._process = os.getpid()
        self._closing = weakref.finalize(self, _close, self._files, self._marks, self._process)

    # ---- opening a directory ----

    def _holds(self, manifest: dict[str, Any]) -> bool:
        """Tell whether the directory holds the states that are described; if not, it is empty."""
        names = sorted(name.encode(errors="backslashreplace").decode() for name in os.listdir(self._folder))
        if not names:
            return False
        if _MANIFEST not in names:
            raise ValueError(
                f"state_dir: found {', '.join(names[:3])} and no {_MANIFEST} in {self._folder}, expected an empty "
                "directory or one whose states were made to the end"
            )
        described = json.dumps(manifest)
        descriptor = self._open_file(_MANIFEST, os.O_RDONLY)
        try:
            with open(descriptor, "rb") as file:
                found = json.loads(file.read(_MOST + 64 * len(described)))
            version, writer = found["format"], found["fastopt"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(
                f"state_dir: found a {_MANIFEST} in {self._folder} that is not fastopt's; {_REMEDY}"
            ) from None
        if version != FORMAT:
            raise ValueError(
                f"state_dir: found states in {self._folder} in format {describe(version)}, of fastopt "
                f"{describe(writer)}, expected format {FORMAT}; use that version, or {_REMEDY}"
            )
        expected, told = json.loads(described), found.get("drawn")
        own = expected.pop("drawn")
        if isinstance(told, dict):  # a directory of before tells of none
            expected["drawn"] = {name: own.get(name) for name in told}
        for place, there, here in _differences(found, expected):
            raise ValueError(
                f"state_dir: found states in {self._folder} with {place} {describe(there)}, expected {here!r} as this "
                f"optimizer has; {_REMEDY}"
            )
        return True

    def _open(self, size: int, made: list[Path]) -> None:
        """Opens the files, making them first if they are new."""
        flags = os.O_RDWR | (0 if self.resumed else os.O_CREAT | os.O_EXCL)
        for name, length in ((_STATES, size), (_PROGRESS, _PAGE)):
            path = self._folder / name
            self._files.append(self._open_file(name, flags))
            if not self.resumed:
                made.append(path)
            if name == _STATES:
                self._lock()
            if not self.resumed:
                _allocate(self._files[-1], length)
            elif (found := os.fstat(self._files[-1]).st_size) != length:
                raise ValueError(f"state_dir: found {found} bytes in {path}, expected {length}; {_REMEDY}")
        states, progress = self._files
        self._memory = mmap.mmap(states, size)
        self._marks = np.ndarray((), _MARKS, mmap.mmap(progress, _PAGE))

    def _open_file(self, name: str, flags: int) -> int:
        """Opens a file of the directory's own: what is written there is nowhere else."""
        path = self._folder / name
        try:
            descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV):
                raise
            found = "a symbolic link" if path.is_symlink() else "a directory" if path.is_dir() else "a special file"
        else:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
                return descriptor
            os.close(descriptor)
            if stat.S_ISREG(status.st_mode):
                found = "a file of several names (hard links)"
            else:
                found = "a directory" if stat.S_ISDIR(status.st_mode) else "a special file"
        raise ValueError(f"state_dir: found {found} at {path}, expected a file of its own; {_REMEDY}")

    def _lock(self) -> None:
        """Takes the directory for this object."""
        for collect in (True, False):
            try:
                fcntl.flock(self._files[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if collect:  # one that is deleted may be in a cycle, and still there
                    gc.collect()
            except OSError:  # some file systems that several machines share have no locks
                return
        raise ValueError(
            f"state_dir: found {self._folder} in use by another optimizer, of this process or another, expected a "
            "directory of its own; delete that one first"
        )

    def _check_marks(self) -> None:
        begun, done, synced, boot = self._marks[()]
        if not 0 <= synced <= done < _COUNTS or begun < 0:
            raise ValueError(
                f"state_dir: found states in {self._folder} after update {done}, synced after {synced}, expected "
                f"numbers >= 0 in this order: {_PROGRESS} is damaged; {_REMEDY}"
            )
        if begun != done:
            raise ValueError(
                f"state_dir: found states in {self._folder} of which a part has update {begun}, and a part only update "
                f"{done}: the process ended in the middle of it; remove the directory to begin anew, then load a state "
                "dict that was saved before, with the parameters"
            )
        if synced != done and boot != _boot():
            raise ValueError(
                f"state_dir: found states in {self._folder} that were synced after update {synced}, but not after "
                f"{done}, before this machine started anew: they may not all have reached the disk; remove the "
                "directory to begin anew, then load a state dict that was saved before, with the parameters"
            )

    def _check_counters(self) -> None:
        for kept in self._kept:
            for value in kept[~((kept >= 0) & (kept < _COUNTS))][:1]:
                raise ValueError(
                    f"state_dir: found a step count, or what goes with it, of {value} in {self._folder}, expected a "
                    f"finite number >= 0: {_STATES} is damaged; {_REMEDY}"
                )

    def _map(self, parameters: Sequence[ParameterStates], manifest: dict[str, Any], memory: int | None) -> None:
        """Makes the arrays over the file."""
        self._kept = [
            np.ndarray(counter.shape, counter.dtype, self._memory, place["offset"])
            for counter, place in zip(self._counters, manifest["counters"], strict=True)
        ]
        self._flat: list[dict[str, tuple[np.ndarray, Sequence[int]]]] = []
        self.arrays: list[dict[str, np.ndarray]] = []
        for parameter, described in zip(parameters, manifest["parameters"], strict=True):
            self._flat.append({})
            self.arrays.append({})
            for state, place in zip(parameter.states, described["states"], strict=True):
                order = range(len(state.shape)) if state.order is None else state.order
                flat = np.ndarray(math.prod(state.shape), state.dtype, self._memory, place["offset"])
                self._flat[-1][state.name] = flat, order
                array = flat.reshape([state.shape[axis] for axis in order]).transpose(np.argsort(order))
                self.arrays[-1][state.name] = array
        self.pager = None
        if memory is not None:
            start = np.frombuffer(self._memory, np.uint8).ctypes.data
            mapping = paging.Mapping(start, start + len(self._memory), 0, self._files[0], str(self._folder / _STATES))
            self.pager = paging.Pager(mapping, memory)

    def _fill(self, parameters: Sequence[ParameterStates]) -> None:
        """Writes what the states begin at, where that is not 0, which new files are of."""
        for i, parameter in enumerate(parameters):
            for state in parameter.states:
                if isinstance(state.initial, np.ndarray) or state.initial != 0:
                    self.write(i, state.name, state.initial)
        for own, kept in zip(self._counters, self._kept, strict=True):
            kept[...] = own

    def _finish(self, manifest: dict[str, Any], made: list[Path]) -> None:
        """Makes new files last, then says so: by a manifest that is there whole or not at all."""
        for file in self._files:
            os.fsync(file)
        unfinished = self._folder / f"{_MANIFEST}.unfinished"
        made += [unfinished, self._folder / _MANIFEST]
        with open(unfinished, "x") as text:
            json.dump(manifest, text, indent=1)
            text.flush()
            os.fsync(text.fileno())
        unfinished.rename(self._folder / _MANIFEST)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    # ---- use ----

    def update(self, work: Callable[[], None]) -> None:
        """Changes the states, whole.

        Parameters
        ----------
        work : callable
            Changes `arrays` and the counters, in another thread: whatever interrupts this one is raised after it.

        Raises
        ------
        ValueError
            An update before has failed, so that the states are not whole, or they are closed.
        Exception
            What `work` raised. It must have been checked before that it can be done.
        """

        def whole() -> None:
            with self._busy:
                self._begin()
                try:
                    work()
                except BaseException as error:
                    self._failure = error
                    raise
                for own, kept in zip(self._counters, self._kept, strict=True):
                    kept[...] = own
                self._marks["done"] = self._marks["begun"]

        _do_to_the_end(whole)

    def step(self, jobs: Sequence[Job], runner: Runner, grad_scale: float, threads: int) -> None:
        """Does a step of jobs over states in these files, streamed where memory is bounded.

        Raises
        ------
        OSError, ValueError
            As `update`.
        """
        self.update(partial(self._run, jobs, runner, grad_scale, threads))

    def _run(self, jobs: Sequence[Job], runner: Runner, grad_scale: float, threads: int) -> None:
        if self.pager is None:
            runner(grad_scale, threads)
            return
        assert isinstance(runner, PartRunner)  # states in files are of arrays on the CPU
        chunks = self.pager.chunks(jobs, [job.units for job in jobs])
        runner.advance(grad_scale)
        self.pager.stream(chunks, lambda chunk: runner.update(chunk.job, chunk.begin, chunk.end, threads))

    def _begin(self) -> None:
        self._check_usable()
        marks = self._marks
        synced = marks["synced"] == marks["done"]
        marks["boot"] = _boot()
        marks["begun"] = marks["done"] + 1
        if synced:
            os.fsync(self._files[1])

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise ValueError(
                f"state_dir: found states in {self._folder} that an update left half changed ({self._failure}); remove "
                "the directory to begin anew, then load a state dict that was saved before, with the parameters"
            ) from self._failure
        if not self._closing.alive:
            raise ValueError(f"state_dir: found {self._folder} closed, expected it open; construct a new optimizer")
        if self._process != os.getpid():
            raise ValueError(
                f"state_dir: found {self._folder} in use by the process of which this one is a fork, expected a "
                "directory of its own; construct a new optimizer"
            )

    def write(self, parameter: int, name: str, value: Any) -> None:
        """Writes a number, or an array of its shape, into a state; beside the making of the files only in an `update`.

        Unlike an assignment to the array it keeps to the bound of memory.
        """
        flat, order = self._flat[parameter][name]
        if isinstance(value, np.ndarray):
            value = value.transpose(order)
            value = value.reshape(-1) if value.flags.c_contiguous else value.flat
        if self.pager is None:
            flat[:] = value
        else:
            self.pager.copy(flat, value)

    def sync(self) -> None:
        """Waits until all is on the disk: then it is found whole even after the system fails.

        Raises
        ------
        ValueError
            As `update`.
        OSError
            The disk cannot be written.
        """
        with self._busy:
            self._check_usable()
            _sync(self._files, self._marks)

    def close(self) -> None:
        """Syncs, and leaves the directory to whoever takes it up next; as happens when the object ends, or the process.

        Raises
        ------
        OSError
            The disk cannot be written.
        """
        with self._busy:
            self._closing()


def _sync(files: Sequence[int], marks: np.ndarray) -> None:
    if marks["synced"] != marks["done"]:
        os.fsync(files[0])
        marks["synced"] = marks["done"]
        os.fsync(files[1])


def _close(files: Sequence[int], marks: np.ndarray, process: int) -> None:
    if os.getpid() != process:  # a fork of the optimizer's
        for file in files:
            os.close(file)
        return
    try:
        _sync(files, marks)
    finally:
        _release(files)


def _release(files: Sequence[int]) -> None:
    if files:
        with suppress(OSError):
            fcntl.flock(files[0], fcntl.LOCK_UN)  # the memory map, which arrays keep alive, would go on holding it
    for file in files:
        os.close(file)


def _do_to_the_end(work: Callable[[], None]) -> None:
    """Does `work` in another thread, where no signal's handler runs; what interrupts this one is raised after it."""
    future: Future[None] = Future()

    def run() -> None:
        if future.set_running_or_notify_cancel():
            try:
                work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(None)

    interruption = None
    try:
        threading.Thread(target=run).start()
    except BaseException as error:
        if future.cancel():  # it has not begun, and will not
            raise
        interruption = error
    while True:
        try:
            failure = future.exception()
            break
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption from failure
    if failure is not None:
        raise failure


def _boot() -> bytes:
    """The number of the system's boot, of which each has another; nothing where the system does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return file.read().strip()
    except OSError:
        return b""


@contextmanager
def _explained(folder: Path, size: int) -> Iterator[None]:
    """Makes the system's errors say which argument they are about."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            there = next(path for path in (folder, *folder.parents) if path.exists())
            free = shutil.disk_usage(there).free
            text = (
                f"state_dir: found {free} bytes free for {folder}, expected {size} for the states ({error.strerror}); "
                "free some, or choose a directory on another disk"
            )
            if free > size and error.errno != errno.EFBIG:
                text = (
                    f"state_dir: found no room for {folder} ({error.strerror}) though {free} bytes are free, expected "
                    f"{size} and some more files (inodes), within the quota; remove some files, or choose a directory "
                    "on another disk"
                )
        else:
            text = f"state_dir: found {folder}, expected a directory that can be written ({error.strerror})"
        raise OSError(error.errno, text) from error


def _allocate(descriptor: int, size: int) -> None:
    """Takes the room on the disk now: a map of a file with holes would meet a full disk with SIGBUS."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        for offset in range(0, size, 1 << 20):  # macOS has no such function, some file systems cannot do it
            os.pwrite(descriptor, bytes(min(1 << 20, size - offset)), offset)


def _describe(parameters: Sequence[ParameterStates], counters: Sequence[np.ndarray]) -> dict[str, Any]:
    """The manifest: what the file of states holds, and where."""
    end = 0

    def place(size: int) -> int:
        nonlocal end
        line = _PAGE if size >= _PAGE else _LINE
        offset = -(-end // line) * line
        end = offset + size
        return offset

    kept = [
        {"dtype": str(counter.dtype), "shape": counter.shape, "offset": place(counter.nbytes)} for counter in counters
    ]
    described = [
        {
            "rule": parameter.rule,
            "shape": parameter.shape,
            "states": [
                {
                    "name": state.name,
                    "kind": state.kind,
                    "shape": state.shape,
                    "order": state.order,
                    "offset": place(math.prod(state.shape) * state.dtype.itemsize),
                }
                for state in parameter.states
            ],
        }
        for parameter in parameters
    ]
    return {
        "format": FORMAT,
        "fastopt": __version__,
        "byteorder": sys.byteorder,
        "parameters": described,
        "counters": kept,
        "bytes": -(-max(end, 1) // _PAGE) * _PAGE,
    }


def _differences(there: Any, here: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Describe the first place in which two manifests differ; versions that wrote them may."""
    if isinstance(here, dict) and isinstance(there, dict):
        for key in here:
            if key != "fastopt":
                yield from _differences(there.get(key), here[key], f"{place}.{key}" if place else key)
    elif isinstance(here, list) and isinstance(there, list) and any(isinstance(item, dict) for item in here + there):
        if len(there) != len(here):
            yield f"number of {place}", len(there), len(here)
        for k, pair in enumerate(zip(there, here, strict=False)):
            yield from _differences(*pair, f"{place}[{k}]")
    elif there != here:
        yield place, there, here
