"""The cffi extension over libfastopt: its declarations are those of fastopt.h itself. Used by the build only."""

import re
import runpy
from pathlib import Path

from cffi import FFI

_HEADER = (Path(__file__).parents[2] / "csrc" / "fastopt.in.h").read_text()


def _declarations(header: str) -> str:
    """The header without what cffi's parser does not take: the preprocessor's lines and C++'s guards."""
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.S)
    header = re.sub(r"#ifdef __cplusplus.*?#endif", "", header, flags=re.S)
    return re.sub(r"^#.*$", "", header, flags=re.M).replace("FASTOPT_API ", "")


_SOURCES = runpy.run_path(str(Path(__file__).with_name("_sources.py")))["digest"]()

# What only the Python package needs.
_OWN = (
    f"""
static const char *built_from(void) {{ return "{_SOURCES}"; }}
"""
    + """
static int all_have(int64_t words, int32_t **where, int32_t bit)
{
    for (int64_t i = 0; i < words; i++)
        if (!(*where[i] & bit))
            return 0;
    return 1;
}
"""
)

ffi = FFI()
ffi.cdef(_declarations(_HEADER))
ffi.cdef("const char *built_from(void); int all_have(int64_t words, int32_t **where, int32_t bit);")
ffi.set_source(
    "fastopt.backends._native", f'#include "fastopt.h"\n{_OWN}', define_macros=[("Py_LIMITED_API", "0x030A0000")]
)
