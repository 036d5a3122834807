/* Calls of the Python extension that read NumPy's arrays and torch's tensors where they are. */
#include <Python.h>

#include "extension.h"

enum { C_CONTIGUOUS = 1, ALIGNED = 0x100, WRITEABLE = 0x400 }; /* flags of NumPy's arrays */

static int are_writable(const writable_jobs *own)
{
    for (int64_t i = 0; i < own->arrays; i++)
        if (!(*(const int *)own->flags[i] & WRITEABLE))
            return 0;
    return 1;
}

int step_writable(const writable_jobs *own, double grad_scale, int32_t threads)
{
    return are_writable(own) ? fastopt_step(own->jobs, own->n, grad_scale, threads) : READ_ONLY;
}

/* Writes the coefficients and numbers of a step that has been advanced, as the update reads them. */
static void put_folded(const fastopt_job *job, const compiled_update *update)
{
    const double *from = job->coefficients;
    int64_t to = 0;
    for (int64_t i = 0, rows = 0; i < job->tensors; i++) {
        update->steps[i] = job->steps[job->parameter[i]];
        if (job->row_of[i] < rows)
            continue;
        rows++; /* they are numbered as they come */
        for (int c = 0; c < job->copies; c++, from += update->width)
            for (int k = update->fused && c ? update->own : 0; k < update->width; k++, to++) {
                if (job->dtype == FASTOPT_FLOAT32)
                    ((float *)update->coefficients)[to] = (float)from[k];
                else
                    ((double *)update->coefficients)[to] = from[k];
            }
    }
}

int step_compiled(const writable_jobs *own, const compiled_update *updates, double grad_scale, int32_t threads)
{
    if (!are_writable(own))
        return READ_ONLY;
    const int error = fastopt_advance(own->jobs, own->n, grad_scale);
    if (error)
        return error;
    const uint64_t before = fastopt_enter_ieee();
    for (int64_t i = 0; i < own->n; i++)
        put_folded(&own->jobs[i], &updates[i]);
    for (int64_t i = 0; i < own->n; i++)
        fastopt_run_parts(updates[i].function, updates[i].context, updates[i].n, updates[i].grain, updates[i].share,
                          updates[i].align, threads);
    fastopt_leave_ieee(before);
    return FASTOPT_OK;
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

/* DLPack's DLTensor. */
typedef struct {
    void *data;
    int32_t device, device_id, ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} dlpack_tensor;

static int is_plain(PyObject *x, const tensor_kind *kind)
{
    const uintptr_t type = (uintptr_t)Py_TYPE(x);
    return type == kind->types[0] || type == kind->types[1];
}

int64_t read_tensors(uintptr_t tensors, const tensor_kind *kind, int64_t most, uint64_t *words)
{
    int (*const describe)(PyObject *, dlpack_tensor *) = (int (*)(PyObject *, dlpack_tensor *))kind->describe;
    const PyGILState_STATE before = PyGILState_Ensure(); /* cffi has let go of it */
    const int64_t count = PyTuple_Size((PyObject *)tensors);
    int64_t k = count;
    for (int64_t i = 0; i < count && k; i++) {
        PyObject *const x = PyTuple_GetItem((PyObject *)tensors, i);
        dlpack_tensor t;
        if (!is_plain(x, kind) || describe(x, &t)) {
            PyErr_Clear();
            k = 0;
            break;
        }
        if (k + 1 + 2 * t.ndim > most) {
            k = most + 1;
            break;
        }
        int64_t elements = 1;
        words[i] = (uint64_t)(uintptr_t)t.data + t.byte_offset;
        words[k++] = (uint64_t)(t.device & 0xff) << 56 | (uint64_t)(t.device_id & 0xffff) << 40 |
                     (uint64_t)t.code << 32 | (uint64_t)t.bits << 24 | (uint64_t)(t.ndim & 0xffffff);
        for (int d = 0; d < t.ndim; d++) {
            words[k++] = (uint64_t)t.shape[d];
            words[k++] = t.strides ? (uint64_t)t.strides[d] : 0;
            elements *= t.shape[d];
        }
        if (elements && !t.data) /* zeros that are not stored, or what is on no device */
            k = 0;
    }
    PyGILState_Release(before);
    return k;
}

typedef struct {
    const tensor_kind *kind;
    int64_t most, count; /* -1: there is something else */
    uint64_t *words;
} found_places;

static void add_word(found_places *found, uint64_t word)
{
    if (found->count < found->most)
        found->words[found->count] = word;
    found->count++;
}

static void add_places(found_places *found, PyObject *x, int depth)
{
    enum { VALUE = 3 }; /* how deep the values of a dict in a dict are */
    const tensor_kind *kind = found->kind;
    if (is_plain(x, kind)) {
        void *address;
        if (((int (*)(void *, void **))kind->locate)((char *)x + kind->offset, &address))
            found->count = -1;
        else
            add_word(found, (uint64_t)(uintptr_t)address);
    } else if (depth < VALUE && PyDict_Check(x)) {
        PyObject *key, *value;
        for (Py_ssize_t at = 0; found->count >= 0 && PyDict_Next(x, &at, &key, &value);) {
            add_word(found, (uint64_t)(uintptr_t)key);
            add_places(found, value, depth + 1);
        }
    } else if (depth < VALUE - 1 && PyList_Check(x)) {
        for (Py_ssize_t i = 0; found->count >= 0 && i < PyList_Size(x); i++)
            add_places(found, PyList_GetItem(x, i), depth + 1);
    } else if (depth == VALUE && !PyType_IsSubtype(Py_TYPE(x), (PyTypeObject *)kind->types[0])) {
        add_word(found, 0);
    } else {
        found->count = -1;
    }
}

int64_t read_places(uintptr_t tensors, const tensor_kind *kind, int64_t most, uint64_t *words)
{
    const PyGILState_STATE before = PyGILState_Ensure(); /* cffi has let go of it */
    found_places found = {kind, most, 0, words};
    for (Py_ssize_t i = 0; found.count >= 0 && i < PyTuple_Size((PyObject *)tensors); i++)
        add_places(&found, PyTuple_GetItem((PyObject *)tensors, i), 1);
    PyGILState_Release(before);
    return found.count > most ? most + 1 : found.count > 0 ? found.count : 0;
}
