"""Numba's cache on disk, which may be missing, full or damaged: then functions are compiled anew."""

from __future__ import annotations

import hashlib
import types
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.ccallback import CFunc

#: Options of compiling: IEEE arithmetic, and without the interpreter's lock.
OPTIONS: Any = {"nogil": True, "error_model": "numpy"}
#: Options for functions that only compiled ones call, without the wrappers for calls from Python and from C: these
#: would take a fifth of the time that a kernel takes to compile.
INNER: Any = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

_CHECK = 4  # bytes of the checksum that ends a file


class _Files(IndexDataCacheFile):
    """Numba's files, of which each says what it is of, and ends with a checksum: machine code that is damaged, or
    another function's, would be run.
    """

    def save(self, key: Any, data: Any) -> None:
        super().save(key, (self._source_stamp, key, data))

    def load(self, key: Any) -> Any:
        found = super().load(key)
        return found[2] if found is not None and found[:2] == (self._source_stamp, key) else None

    def _dump(self, data: Any) -> bytes:
        dumped = super()._dump(data)
        return dumped + zlib.crc32(dumped).to_bytes(_CHECK, "little")  # unpickling stops before it

    def _load_data(self, name: str) -> Any:
        with open(self._data_path(name), "rb") as file:
            data = file.read()
        if zlib.crc32(data[:-_CHECK]).to_bytes(_CHECK, "little") != data[-_CHECK:]:
            return None
        return super()._load_data(name)


class _Cache(FunctionCache):
    """Numba's cache of a function, whose files may be damaged, and the disk full."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # whatever the unpickling of what is not a pickle raises
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:
            warn_uncached(f"{self._cache_path}: {error}")


def _cache_of(function: Callable[..., Any]) -> _Cache | None:
    """The cache of a function's compiled forms, None where no folder can be written."""
    try:
        return _Cache(function)
    except (RuntimeError, OSError) as error:  # no folder can be written; the source is not there to be compared
        warn_uncached(str(error))
        return None


_warned = False


def warn_uncached(why: str) -> None:
    """Warns, once in a process, that what is compiled is not kept."""
    global _warned
    if _warned:
        return
    _warned = True
    warnings.warn(
        f"fastopt: what is compiled cannot be cached on disk ({why}): each process compiles anew what it uses, seconds "
        "for each kernel; set NUMBA_CACHE_DIR to a folder that can be written",
        RuntimeWarning,
        stacklevel=2,
    )


def bind(function: Callable[..., Any], name: str, **names: Any) -> Callable[..., Any]:
    """Copy a function with some globals replaced. The new name is its key in Numba's disk cache."""
    bound = types.FunctionType(function.__code__, {**function.__globals__, **names}, name)
    bound.__qualname__ = name
    return bound


def digest_of(*modules: types.ModuleType) -> str:
    """A digest of modules' source: Numba's cache looks at one file only, so a function's name must tell of others."""
    return hashlib.sha256(b"".join(map(_source_of, modules))).hexdigest()[:12]


@cache
def _source_of(module: types.ModuleType) -> bytes:
    """The bytes of a module's file, which its loader reads in a tenth of the time of `inspect.getsource`."""
    loader: Any = module.__loader__
    source: bytes = loader.get_data(module.__file__)
    return source


def compiled(function: Callable[..., Any]) -> Any:
    """The function as an ``njit`` function that is cached on disk."""
    made: Any = njit(**OPTIONS)(function)
    if hasattr(made, "_cache") and (kept := _cache_of(function)) is not None:
        made._cache = kept
    return made


def compiled_callback(function: Callable[..., Any], signature: Any) -> CFunc:
    """The function as what C can call, cached on disk."""
    made: Any = CFunc(function, (signature.args, signature.return_type), {}, {"error_model": OPTIONS["error_model"]})
    if (kept := _cache_of(function)) is not None:
        made._cache = kept
    made.compile()
    return made


def folder() -> str | None:
    """Return the folder in which compiled kernels are cached; None where no folder can be written."""
    kept = _cache_of(folder)
    return kept and kept.cache_path
