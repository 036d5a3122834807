"""The cffi extension over libfastopt: its declarations are read from the headers. Used by the build only."""

import re
import runpy
from pathlib import Path

from cffi import FFI

_CSRC = Path(__file__).parents[3] / "csrc"
_HEADERS = [(_CSRC / name).read_text() for name in ("fastopt.in.h", "internal.h", "python/extension.h")]


def _declarations(header: str) -> str:
    """The header without what cffi's parser does not take: the preprocessor's lines and C++'s guards."""
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.S)
    header = re.sub(r"#ifdef __cplusplus.*?#endif", "", header, flags=re.S)
    return re.sub(r"^#.*$", "", header, flags=re.M).replace("FASTOPT_API ", "")


_SOURCES = runpy.run_path(str(Path(__file__).parents[1] / "_sources.py"))["digest"]()

ffi = FFI()
ffi.cdef("".join(map(_declarations, _HEADERS)))
ffi.set_source(
    "fastopt.backends.native._native",
    f'#include "python/extension.h"\nconst char *built_from(void) {{ return "{_SOURCES}"; }}\n',
    sources=["csrc/python/extension.c"],
    define_macros=[("Py_LIMITED_API", "0x030A0000")],
    # Calls that hand arguments on: nothing to optimize, and nobody debugs them. With -O3 -g they take thrice as long.
    extra_compile_args=["-O1", "-g0"],
)
