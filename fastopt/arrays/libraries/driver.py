"""Devices, their memory, and launches, as cuda.core and the driver's own bindings have them."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib.resources import files
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from cuda.bindings import driver
from cuda.core import Buffer, ObjectCode, Stream
from cuda.core import Device as CoreDevice
from numba.cuda.cudadrv import nvrtc

from ...errors import BackendUnavailable
from ..array import Place
from . import torch

_UPLOAD_WORDS = 496  # as upload.ptx has them
_UPLOAD_PTX = files(__package__).joinpath("upload.ptx").read_text()


def _checked(result: tuple[Any, ...]) -> Any:
    """The value of a call of the driver.

    Raises
    ------
    MemoryError
        There is too little memory on the device.
    RuntimeError
        Another error, which the driver names.
    """
    code, *values = result
    if code != driver.CUresult.CUDA_SUCCESS:
        _, name = driver.cuGetErrorName(code)
        _, text = driver.cuGetErrorString(code)
        kind = MemoryError if code == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY else RuntimeError
        raise kind(f"CUDA: {(name or b'').decode()}: {(text or b'').decode()}")
    return values[0] if values else None


class Kernel:
    """A compiled kernel on a device, with room for its arguments: a launch takes them as they are then.

    Attributes
    ----------
    arguments : numpy.ndarray, uint64
        A word for each argument, in order; narrower ones have a word's first bytes.
    """

    __slots__ = ("_address", "_device", "_pointers", "_pointers_at", "_threads", "arguments")

    def __init__(self, device: Device, address: int, count: int, threads: int) -> None:
        self._device, self._address, self._threads = device, address, threads
        self.arguments = np.zeros(count, np.uint64)
        self._pointers, self._pointers_at = _pointers_to(self.arguments)

    def launch(self, blocks: int, stream: int, _launch: Any = driver.cuLaunchKernel) -> None:
        """Launches so many thread blocks on a stream."""
        device = self._device
        if int(driver.cuCtxGetCurrent()[1]) == device.context:
            code = _launch(self._address, blocks, 1, 1, self._threads, 1, 1, 0, stream, self._pointers_at, 0)
        else:
            with device.current():
                code = _launch(self._address, blocks, 1, 1, self._threads, 1, 1, 0, stream, self._pointers_at, 0)
        if code[0]:
            _checked(code)


class Within(int):
    """An address within a step's memory, from where that begins."""

    def __add__(self, other: int) -> Within:
        return Within(int(self) + other)


class Launches:
    """Kernels that are launched one behind the other, with the arguments of all of them in one table.

    Parameters
    ----------
    device : Device
        Where they are launched.
    launches : sequence of (int, int, int, sequence of int)
        Of each kernel where it is (see `Device.load`), its thread blocks, the threads of one, and its arguments.

    Attributes
    ----------
    arguments : numpy.ndarray, uint64
        A word for each argument of each kernel, in order.
    """

    def __init__(self, device: Device, launches: Sequence[tuple[int, int, int, Sequence[int]]]) -> None:
        self._device = device
        words = [word for *_, own in launches for word in own]
        self.arguments = np.array(words, np.uint64)
        self._within = [place for place, word in enumerate(words) if type(word) is Within]
        self._from = self.arguments[self._within]
        self._pointers, at = _pointers_to(self.arguments)
        self._calls = []
        for address, blocks, threads, own in launches:
            self._calls.append((address, blocks, 1, 1, threads, 1, 1, 0, at))
            at += 8 * len(own)

    def launch(self, memory: int, stream: int, _launch: Any = driver.cuLaunchKernel) -> None:
        """Launches all on a stream, for a step whose memory is there."""
        self.arguments[self._within] = self._from + np.uint64(memory)
        with self._device.current():
            for *call, arguments in self._calls:
                code = _launch(*call, stream, arguments, 0)
                if code[0]:
                    _checked(code)


def _pointers_to(arguments: np.ndarray) -> tuple[np.ndarray, int]:
    """The address of each argument, as launches want them, and where these are."""
    pointers = arguments.ctypes.data + 8 * np.arange(arguments.size, dtype=np.uint64)
    return pointers, pointers.ctypes.data


class Device:
    """A CUDA device."""

    def __init__(self, index: int) -> None:
        before = driver.cuCtxGetCurrent()[1]
        self._core = CoreDevice(index)
        self._core.set_current()
        self.context = int(_checked(driver.cuCtxGetCurrent()))
        driver.cuCtxSetCurrent(before)
        self.capability = _target_of(tuple(self._core.compute_capability), self._core.name)
        self._loaded: dict[str, tuple[ObjectCode, int]] = {}
        self._upload: Kernel | None = None
        self._uploading = Lock()
        self._fetching: int | None = None  # a stream that waits for no other

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes it the thread's current device, for a while."""
        before = _checked(driver.cuCtxGetCurrent())
        _checked(driver.cuCtxSetCurrent(self.context))
        try:
            yield
        finally:
            _checked(driver.cuCtxSetCurrent(before))

    def load(self, ptx: str, name: str) -> int:
        """The address of a kernel of that PTX, for a launch."""
        if ptx not in self._loaded:
            code = ObjectCode.from_ptx(ptx.encode(), name=name)
            with self.current():
                self._loaded[ptx] = code, int(code.get_kernel(name).handle)
        return self._loaded[ptx][1]

    def kernel(self, ptx: str, name: str, count: int, threads: int) -> Kernel:
        """A kernel of that PTX, with room for `count` arguments, in blocks of so many threads."""
        return Kernel(self, self.load(ptx, name), count, threads)

    def allocate(self, nbytes: int, stream: int) -> Memory:
        """Memory of the device, for work on a stream.

        Raises
        ------
        MemoryError
            There is too little.
        """
        with self.current():
            try:
                return Memory(self._core.allocate(nbytes, stream=Stream.from_handle(stream)), stream)
            except Exception as error:  # cuda.core has one kind for all errors of the driver
                if "OUT_OF_MEMORY" in str(error):
                    raise MemoryError(f"CUDA: {error}") from None
                raise

    def upload(self, words: np.ndarray, address: int, stream: int) -> None:
        """Writes words to memory when the stream gets there; they need not stay as they are until then."""
        with self._uploading:
            if self._upload is None:
                self._upload = self.kernel(_UPLOAD_PTX, "fastopt_upload", 2 + _UPLOAD_WORDS, 512)
            arguments = self._upload.arguments
            for first in range(0, len(words), _UPLOAD_WORDS):
                part = words[first : first + _UPLOAD_WORDS]
                arguments[:2] = address + 8 * first, len(part)
                arguments[2 : 2 + len(part)] = part  # the third argument, all of it
                self._upload.launch(1, stream)

    def fill(self, address: int, values: np.ndarray, stream: int = 0) -> None:
        """Writes an array's bytes to memory once the stream gets there: this waits for it."""
        with self.current():
            _checked(driver.cuMemcpyHtoDAsync(address, values.ctypes.data, values.nbytes, stream))
            _checked(driver.cuStreamSynchronize(stream))

    def copy(self, address: int, of: int, nbytes: int, stream: int) -> None:
        """Copies bytes of its memory to others when the stream gets there."""
        with self.current():
            _checked(driver.cuMemcpyDtoDAsync(address, of, nbytes, stream))

    def host_words(self, count: int) -> HostWords:
        """Words of the host's memory, at first 0, that the device can write."""
        with self.current():
            address = int(_checked(driver.cuMemHostAlloc(8 * count, driver.CU_MEMHOSTALLOC_PORTABLE)))
        words = np.ctypeslib.as_array((ctypes.c_int64 * count).from_address(address))
        words[:] = 0
        return HostWords(words, address)

    def download(self, address: int, into: np.ndarray, stream: int) -> None:
        """Fills an array on the host with what is at an address once the stream gets there: this waits for it."""
        with self.current():
            _checked(driver.cuMemcpyDtoHAsync(into.ctypes.data, address, into.nbytes, stream))
            _checked(driver.cuStreamSynchronize(stream))

    def event(self, stream: int) -> Event:
        """An event that is over once the stream gets there."""
        with self.current():
            return Event(stream)

    def fetch(self, address: int, into: np.ndarray, event: Event | None) -> None:
        """Fills an array on the host with what is at an address, once an event is over, else all that the device does.

        It does not wait for what streams have to do behind the event.
        """
        with self.current():
            if event is None:
                _checked(driver.cuCtxSynchronize())
            else:
                _checked(driver.cuEventSynchronize(event.handle))
            if self._fetching is None:
                kind = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
                self._fetching = int(_checked(driver.cuStreamCreate(kind)))
            _checked(driver.cuMemcpyDtoHAsync(into.ctypes.data, address, into.nbytes, self._fetching))
            _checked(driver.cuStreamSynchronize(self._fetching))


class Event:
    """A place in a stream's work."""

    def __init__(self, stream: int) -> None:
        self.handle = _checked(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))
        _checked(driver.cuEventRecord(self.handle, stream))

    def __del__(self, _destroy: Any = driver.cuEventDestroy) -> None:
        if hasattr(self, "handle"):
            _destroy(self.handle)


class HostWords(NamedTuple):
    """Memory of the host that devices can write, at the same address; it is never given back."""

    words: np.ndarray
    address: int


def _target_of(capability: tuple[int, int], name: str) -> tuple[int, int]:
    """The compute capability that kernels are compiled for: the device's own, or the highest below it that is known.

    Raises
    ------
    BackendUnavailable
        The device is older than what the compiler knows.
    """
    try:
        return nvrtc.find_closest_arch(capability)
    except nvrtc.CCSupportError:
        lowest, own = ".".join(map(str, nvrtc.get_lowest_supported_cc())), ".".join(map(str, capability))
        raise BackendUnavailable(
            f"{name} has compute capability {own}, expected {lowest} or more, as CUDA's compiler wants; move the "
            "arrays to the CPU"
        ) from None


class Memory:
    """Memory of a device that is given back when this object goes, once the stream that used it last is done."""

    def __init__(self, buffer: Buffer, stream: int) -> None:
        self._buffer, self._stream = buffer, stream
        self.address = int(buffer.handle)

    def used_on(self, stream: int) -> None:
        """Tells on which stream it is used from now on."""
        if stream != self._stream:
            self._buffer.set_deallocation_stream(Stream.from_handle(stream))
            self._stream = stream


@cache
def device_of(index: int) -> Device:
    """The device of that number."""
    return Device(index)


def count_devices() -> int:
    """Count the devices.

    Raises
    ------
    RuntimeError
        There is no driver, or none that works; the message is the driver's.
    """
    _checked(driver.cuInit(0))
    return int(_checked(driver.cuDeviceGetCount()))


def device_of_address(address: int) -> int:
    """The number of the device whose memory that is; of an empty array's address, which may be any, the current one's.

    Raises
    ------
    ValueError
        It is no device's.
    """
    ordinal = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    code, found = driver.cuPointerGetAttribute(ordinal, address) if address else (0, _current_index())
    if code:
        raise ValueError(f"its memory, at {address:#x}, is no CUDA device's")
    return int(found)


def _current_index() -> int:
    return int(CoreDevice().device_id)


def stream_of(place: Place) -> Callable[[], int]:
    """Return a function for the caller's current stream, as the library of the arrays has it."""
    if place.library == torch.LIBRARY:
        return torch.current_stream(place.number)
    if place.library == "cupy":
        return partial(_stream_of_cupy, sys.modules["cupy"].cuda, place.number)
    return lambda: place.stream


def _stream_of_cupy(cuda: Any, device: int) -> int:
    with cuda.Device(device):
        return int(cuda.get_current_stream().ptr)


def is_capturing(stream: int) -> bool:
    """Tell whether a stream is being captured into a graph."""
    code, found = driver.cuStreamIsCapturing(stream)
    if code:
        _checked((code,))
    return found is not _NOT_CAPTURING


_NOT_CAPTURING = driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE
