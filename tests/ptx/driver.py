"""A CUDA driver without a GPU: `install()` makes the CUDA libraries of this process find it, launches run interpreted.

The stub `libcuda.so.1` (driver.c) is loaded before any CUDA library; theirs is then found by its name, wherever they
search. It cannot be taken away again, and libraries remember what they found: a process has it from its beginning or
not at all. Tests that need it are marked `stub_driver` (tests/conftest.py).

Device memory is host memory, so that a NumPy array can stand for one of a device once it is registered. A launch that
does what it must not returns CUDA_ERROR_ILLEGAL_ADDRESS; `Gpu.check` then raises what it was.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .interpreter import Kernel, Module
from .memory import Memory

SOURCE = Path(__file__).with_name("driver.c")
ILLEGAL_ADDRESS = 700

_LAUNCHER = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_uint,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
)


class Unavailable(Exception):
    """Why there is no stub driver here."""


class _State(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in ("devices", "major", "minor", "execute", "capturing")),
        *((name, ctypes.c_int64) for name in ("allocatable", "synchronizations", "launches", "changes")),
        ("launcher", _LAUNCHER),
    )


class _Block(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_uint64),
        ("nbytes", ctypes.c_uint64),
        *((name, ctypes.c_int32) for name in ("device", "kind", "owned")),
    )


@dataclass
class Launched:
    """A launch that was executed, or captured."""

    name: str
    grid: int
    block: int
    stream: int
    shared: int
    params: list[bytes]
    kernel: Kernel = field(repr=False)
    statistics: Counter = field(default_factory=Counter)  # how many accesses of (kind, bytes), such as ("ld", 16)
    steps: int = 0  # instructions that groups of threads executed


def _build() -> Path:
    """The compiled stub, from a cache where it was compiled before."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if not sys.platform.startswith("linux"):
        raise Unavailable("it is for Linux alone")
    if compiler is None:
        raise Unavailable("no C compiler was found")
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir(), f"fastopt-stub-driver-{os.getuid()}-{digest}")
    library = folder / "libcuda.so.1"
    if not library.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        unfinished = folder / f"{os.getpid()}.so"  # another process may do the same
        command = [compiler, "-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", unfinished, SOURCE, "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable(f"the stub driver was not compiled: {done.stderr.strip()}")
        os.replace(unfinished, library)
    return library


class Gpu:
    """The device that the stub driver shows, and what a test may see and set of it."""

    def __init__(self, library: ctypes.CDLL, compute_capability: tuple[int, int], devices: int):
        self.launches: list[Launched] = []
        self.captured: list[Launched] = []  # launches while `capturing`, for `replay`
        self.errors: list[BaseException] = []
        self.hogwild: set[str] = set()  # names of regions where races are tolerated
        self.memory = Memory()
        self._library = library
        self._library.stub_name.restype = self._library.stub_ptx.restype = ctypes.c_char_p
        self._library.stub_name.argtypes = self._library.stub_ptx.argtypes = [ctypes.c_void_p]
        self._library.stub_add.argtypes = [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int, ctypes.c_int, ctypes.c_int]
        self._library.stub_remove.argtypes = [ctypes.c_uint64]
        self._count = ctypes.c_int.in_dll(library, "stub_block_count")
        self._state = _State.in_dll(library, "stub")
        self._launcher = _LAUNCHER(self._on_launch)  # lives as long as the driver may call it
        self._state.launcher = self._launcher
        self._state.major, self._state.minor = compute_capability
        self._state.devices = devices
        self._lock = threading.RLock()
        self._seen = 0
        self._registered: dict[int, tuple[np.ndarray, str, bool]] = {}
        self._kernels: dict[int, Kernel] = {}
        self._modules: dict[bytes, Module] = {}
        self._texts: dict[str, str] = {}

    # ---- memory ----

    def register(self, array: np.ndarray, name: str, writable: bool = True, device: int = 0) -> None:
        """Let a contiguous array stand for one of a device, at its address."""
        if not array.flags.forc:
            raise ValueError(f"the array {name!r} is not contiguous")
        if array.nbytes:
            self._registered[array.ctypes.data] = array, name, writable
            self._library.stub_add(array.ctypes.data, array.nbytes, device, 2, 0)

    def unregister(self, array: np.ndarray) -> None:
        """The array is one of the host again."""
        if array.nbytes:
            del self._registered[array.ctypes.data]
            self._library.stub_remove(array.ctypes.data)

    def _refresh(self) -> None:
        """Bring the interpreter's memory to the state of the driver's."""
        if self._seen == self._state.changes:
            return
        while self._seen != self._state.changes:  # arrays that go may do so at any time, now among others
            self._seen = self._state.changes
            kind = _Block * self._count.value
            blocks = kind.from_buffer_copy(kind.in_dll(self._library, "stub_blocks"))
        self.memory = Memory()
        for i, block in enumerate(blocks):
            _, name, writable = self._registered.get(block.address, (None, f"allocation {i}", True))
            self.memory.add(block.address, block.nbytes, name, writable)

    def fail_allocations_after(self, nbytes: int | None) -> None:
        """From now on, allocations of more than so many bytes together fail; with None none does."""
        self._state.allocatable = -1 if nbytes is None else nbytes

    # ---- what tests set and see ----

    @property
    def execute(self) -> bool:
        """Let launches run, or only count them."""
        return bool(self._state.execute)

    @execute.setter
    def execute(self, value: bool) -> None:
        self._state.execute = value

    @property
    def capturing(self) -> bool:
        """Let streams say that they are being captured: launches are then kept in `captured` instead of run.

        Copies are made at once, nevertheless.
        """
        return bool(self._state.capturing)

    @capturing.setter
    def capturing(self, value: bool) -> None:
        self._state.capturing = value

    @property
    def devices(self) -> int:
        """The number of devices; libraries ask for it once."""
        return self._state.devices

    @devices.setter
    def devices(self, value: int) -> None:
        self._state.devices = value

    @property
    def launched(self) -> int:
        """Number of launches, executed or not."""
        return self._state.launches

    @property
    def synchronizations(self) -> int:
        """Number of calls that wait for the device."""
        return self._state.synchronizations

    def reset(self) -> None:
        """Forget launches, errors and settings; registered arrays and allocations stay."""
        self.execute, self.capturing = True, False
        self.fail_allocations_after(None)
        self._state.launches = self._state.synchronizations = 0
        for kept in (self.launches, self.captured, self.errors, self.hogwild):
            kept.clear()

    def check(self) -> None:
        """Raise what an executed launch raised: its caller saw CUDA_ERROR_ILLEGAL_ADDRESS, whatever it was."""
        if self.errors:
            errors, self.errors[:] = self.errors[:], []
            raise errors[0]

    def replay(self) -> None:
        """Run what was captured, as the launch of a graph does, with the parameters of then."""
        for launched in self.captured:
            self._run(launched)

    # ---- launches ----

    def record_numba(self) -> None:
        """Let numba-cuda's own dispatcher launch: it gives the driver machine code, whose PTX is kept here by name."""
        from numba.cuda import codegen

        texts, get_cubin = self._texts, codegen.CUDACodeLibrary.get_cubin

        def recording(library, cc=None):
            cubin = get_cubin(library, cc=cc)
            texts[library._entry_name] = library.get_lto_ptx() if library._lto else library.get_asm_str(cc=cc)
            return cubin

        codegen.CUDACodeLibrary.get_cubin = recording

    def _kernel(self, handle: int) -> Kernel:
        kernel = self._kernels.get(handle)
        if kernel is None:
            name, image = self._library.stub_name(handle).decode(), self._library.stub_ptx(handle)
            if image is None:
                if name not in self._texts:
                    raise NotImplementedError(f"the kernel {name} was not loaded as PTX; see Gpu.record_numba")
                image = self._texts[name].encode()
            if image not in self._modules:
                self._modules[image] = Module(image.decode().rstrip("\0"))
            kernel = self._kernels[handle] = self._modules[image].kernels[name]
        return kernel

    def _on_launch(self, handle: int, grid, block, shared: int, stream: int | None, params) -> int:
        try:
            with self._lock:
                kernel = self._kernel(handle)
                values = [ctypes.string_at(params[i], p.nbytes) for i, p in enumerate(kernel.params)]
                if any(size[axis] != 1 for size in (grid, block) for axis in (1, 2)):
                    raise NotImplementedError(f"{kernel.name}: a grid or blocks of more than one dimension")
                launched = Launched(kernel.name, grid[0], block[0], stream or 0, shared, values, kernel)
                if self.capturing:
                    self.captured.append(launched)
                else:
                    self._run(launched)
            return 0
        except BaseException as error:  # an exception cannot pass through C
            self.errors.append(error)
            return ILLEGAL_ADDRESS

    def _run(self, launched: Launched) -> None:
        self._refresh()
        self.launches.append(launched)
        run: Callable[..., int] = launched.kernel.launch
        hogwild = tuple(self.hogwild)
        launched.steps = run(
            launched.grid, launched.block, launched.params, self.memory, hogwild=hogwild, shared=launched.shared
        )
        launched.statistics = self.memory.statistics


_installed: Gpu | None = None


def install(compute_capability: tuple[int, int] = (9, 0), devices: int = 1) -> Gpu:
    """Make the stub this process's CUDA driver; once, before any CUDA library looks for one."""
    global _installed
    if _installed is not None:
        if (_installed._state.major, _installed._state.minor) != tuple(compute_capability):
            raise ValueError("a stub driver of another compute capability is installed")
        return _installed
    try:
        ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        pass
    else:
        raise Unavailable("another CUDA driver is loaded already")
    library = ctypes.CDLL(os.fspath(_build()), mode=ctypes.RTLD_GLOBAL)
    _installed = Gpu(library, compute_capability, devices)
    return _installed
