"""The cffi extension over libfastopt: its declarations are those of the headers themselves. Used by the build only."""

import re
import runpy
from pathlib import Path

from cffi import FFI

_HEADERS = [(Path(__file__).parents[3] / "csrc" / name).read_text() for name in ("fastopt.in.h", "internal.h")]


def _declarations(header: str) -> str:
    """The header without what cffi's parser does not take: the preprocessor's lines and C++'s guards."""
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.S)
    header = re.sub(r"#ifdef __cplusplus.*?#endif", "", header, flags=re.S)
    return re.sub(r"^#.*$", "", header, flags=re.M).replace("FASTOPT_API ", "")


_SOURCES = runpy.run_path(str(Path(__file__).parents[1] / "_sources.py"))["digest"]()

# What only the Python package needs, as cffi and the compiler read it.
_TYPES = """
enum { READ_ONLY = -1 };

/* Jobs, and the flags of the NumPy arrays that they write, which can become read-only. */
typedef struct {
    fastopt_job *jobs;
    int64_t n;
    uintptr_t *flags;
    int64_t arrays;
} writable_jobs;
"""
_OWN = (
    f"""
static const char *built_from(void) {{ return "{_SOURCES}"; }}
"""
    + """
enum { C_CONTIGUOUS = 1, ALIGNED = 0x100, WRITEABLE = 0x400 }; /* flags of NumPy's arrays */

/* Does one step, unless an array is read-only: then it returns READ_ONLY, and nothing has been done. */
static int step_writable(const writable_jobs *own, double grad_scale, int32_t threads)
{
    for (int64_t i = 0; i < own->arrays; i++)
        if (!(*(const int *)own->flags[i] & WRITEABLE))
            return READ_ONLY;
    return fastopt_step(own->jobs, own->n, grad_scale, threads);
}

/* How NumPy's arrays and dtypes begin, in every version. */
typedef struct {
    PyObject_HEAD
    PyTypeObject *scalar;
    char kind, type, byteorder, reserved;
    int number;
} numpy_dtype;

typedef struct {
    PyObject_HEAD
    uint64_t data;
    int nd;
    intptr_t *shape, *strides;
    PyObject *base;
    numpy_dtype *dtype;
    int flags;
} numpy_array;

/*
 * Writes the address of each array of a tuple (0 for None), then how each is laid out. Returns the number of words;
 * more than `most` if there is no room for them, 0 if there is something else than plain arrays. A tuple's items begin
 * `begin` bytes behind its address: versions of Python differ.
 */
static int64_t read_arrays(uintptr_t arrays, uintptr_t begin, uintptr_t type, int64_t most, uint64_t *words)
{
    enum { HALF = 23, STRING = 18 };
    PyObject *const *items = (PyObject *const *)(arrays + begin);
    int64_t count = ((const PyVarObject *)arrays)->ob_size, k = count;
    for (int64_t i = 0; i < count; i++) {
        if (k + 1 > most)
            return most + 1;
        if (items[i] == Py_None) {
            words[i] = words[k++] = 0;
            continue;
        }
        const numpy_array *x = (const numpy_array *)items[i];
        if ((uintptr_t)((const PyObject *)x)->ob_type != type)
            return 0;
        int number = x->dtype->number, dense = x->flags & C_CONTIGUOUS;
        if (number < 0 || (number >= STRING && number < HALF)) /* dtypes that have parameters */
            return 0;
        if (k + 1 + x->nd * (dense ? 1 : 2) > most)
            return most + 1;
        words[i] = x->data;
        words[k++] = (uint64_t)number << 32 | (uint64_t)(x->flags & (C_CONTIGUOUS | ALIGNED | WRITEABLE)) << 16 |
                     (uint64_t)(x->dtype->byteorder & 0xff) << 8 | (uint64_t)(x->nd + 1);
        for (int d = 0; d < x->nd; d++)
            words[k++] = (uint64_t)x->shape[d];
        for (int d = 0; d < x->nd && !dense; d++)
            words[k++] = (uint64_t)x->strides[d];
    }
    return k;
}
"""
)

ffi = FFI()
ffi.cdef("".join(map(_declarations, _HEADERS)))
ffi.cdef(
    _TYPES
    + """
const char *built_from(void);
int step_writable(const writable_jobs *own, double grad_scale, int32_t threads);
int64_t read_arrays(uintptr_t arrays, uintptr_t begin, uintptr_t type, int64_t most, uint64_t *words);
"""
)
ffi.set_source(
    "fastopt.backends.native._native",
    f'#include "internal.h"\n{_TYPES}{_OWN}',
    define_macros=[("Py_LIMITED_API", "0x030A0000")],
)
