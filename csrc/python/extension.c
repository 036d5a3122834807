/* Calls of the Python extension that read NumPy's arrays where they are. */
#include <Python.h>

#include "extension.h"

enum { C_CONTIGUOUS = 1, ALIGNED = 0x100, WRITEABLE = 0x400 }; /* flags of NumPy's arrays */

int step_writable(const writable_jobs *own, double grad_scale, int32_t threads)
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

int64_t read_arrays(uintptr_t arrays, uintptr_t begin, uintptr_t type, int64_t most, uint64_t *words)
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
