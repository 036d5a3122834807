"""Internal. Facts of this installation: version, processor, threads, backends."""

from __future__ import annotations

import platform
import shlex
import sys
from pathlib import Path

from . import settings
from ._version import __version__
from .backends.choice import available_backends, get_backend, load_backend


def _cpu_name() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def configuration() -> dict[str, str]:
    """Collect what `show_config` prints, by heading."""
    backends = available_backends()
    lines = {
        "fastopt": f"{__version__}, Python {platform.python_version()}, {platform.platform()}",
        "processor": f"{_cpu_name()}, {settings.cpus()} CPUs for this process",
        "threads": str(settings.get_num_threads()),
    }
    if backends["native"] == "available":
        from .backends import native

        lines["instruction sets"] = (
            f"compiled {', '.join(native.isa_compiled())}; supported {', '.join(native.isa_supported())}; "
            f"chosen {native.isa()}"
        )
        lines["native library"] = native.compiler()
    for name, status in backends.items():
        lines[f"backend {name}"] = status
    lines["backend chosen"] = get_backend() or "by the arrays"
    return lines


def get_include() -> str:
    """The folder of ``fastopt.h``, the C interface, which is documented there.

    Raises
    ------
    BackendUnavailable
        The C library was not built here, or cannot be loaded.
    """
    load_backend("native")
    return str(Path(__file__).parent / "include")


def get_library() -> str:
    """The path of the C library, the one that this process uses: for ctypes, or a linker.

    Raises
    ------
    BackendUnavailable
        The C library was not built here, or cannot be loaded.
    """
    load_backend("native")
    major, minor = __version__.split(".")[:2]
    series = f"0.{minor}" if major == "0" else major
    name = "libfastopt.dylib" if sys.platform == "darwin" else f"libfastopt.so.{series}"
    return str(Path(__file__).parent / "lib" / name)


def compiler_flags(cflags: bool, libs: bool) -> str:
    """Return the compiler's flags for the header, the library, or both, as pkg-config prints them."""
    flags = [f"-I{get_include()}"] if cflags else []
    if libs:
        folder = Path(get_library()).parent
        flags += [f"-L{folder}", "-lfastopt", f"-Wl,-rpath,{folder}"]
    return shlex.join(flags)


def _places() -> dict[str, str]:
    """Collect the places of installed parts, by heading."""
    backends = available_backends()
    lines: dict[str, str] = {}
    if backends["native"] == "available":
        library = Path(get_library())
        lines |= {"C library": str(library), "C header": str(Path(get_include()) / "fastopt.h")}
        lines |= {"for pkg-config": str(library.parent / "pkgconfig"), "for CMake": str(library.parents[1])}
    if backends["numba"] == "available":
        from .backends import numba_cache

        lines["Numba's cache"] = numba_cache.folder() or "none: no folder that can be written; set NUMBA_CACHE_DIR"
    return lines


def show_config() -> None:
    """Prints version, instruction sets, threads, the backends, with the reason why one is missing, and where the C
    library, its header and the cache of compiled kernels are, with the paths that pkg-config and CMake are to search.
    """
    lines = configuration()
    chosen = lines.popitem()
    for heading, text in [*lines.items(), *_places().items(), chosen]:
        print(f"{heading + ':':20} {text}")
