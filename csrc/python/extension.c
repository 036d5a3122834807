/* Calls of the Python extension that read NumPy's arrays and torch's tensors where they are. */
#include <Python.h>
#include <string.h>

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

/* ---- looks: functions of Python's own kind, which it calls in a third of the time of cffi's ---- */

/* Where things are, and how they are laid out. */
typedef struct {
    uint64_t *words, first[256];
    Py_ssize_t count, most;
    int failed; /* there is something else among them, or no memory */
} look;

static void begin_look(look *found)
{
    found->words = found->first;
    found->most = sizeof found->first / sizeof *found->first;
    found->count = 0;
    found->failed = 0;
}

static void add_word(look *found, uint64_t word)
{
    if (found->count == found->most) {
        uint64_t *const before = found->words == found->first ? NULL : found->words;
        uint64_t *const words = PyMem_Realloc(before, 2 * (size_t)found->most * sizeof word);
        if (!words) {
            found->failed = 1;
            return;
        }
        if (!before)
            memcpy(words, found->first, sizeof found->first);
        found->words = words;
        found->most *= 2;
    }
    found->words[found->count++] = word;
}

static PyObject *bytes_of(const uint64_t *words, Py_ssize_t n)
{
    return PyBytes_FromStringAndSize((const char *)words, n * (Py_ssize_t)sizeof *words);
}

/* Returns the words behind so many addresses, and these, as bytes; None where there is nothing to tell. */
static PyObject *end_look(look *found, Py_ssize_t addresses)
{
    PyObject *answer = NULL;
    if (found->failed || !found->count) {
        answer = Py_None;
        Py_INCREF(answer);
    } else {
        PyObject *layouts = bytes_of(found->words + addresses, found->count - addresses);
        PyObject *at = bytes_of(found->words, addresses);
        if (layouts && at)
            answer = PyTuple_Pack(2, layouts, at);
        Py_XDECREF(layouts);
        Py_XDECREF(at);
    }
    if (found->words != found->first)
        PyMem_Free(found->words);
    return answer;
}

static PyTypeObject *array_type; /* NumPy's */

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

static void add_array(look *found, const numpy_array *x)
{
    enum { HALF = 23, STRING = 18 };
    const int number = x->dtype->number, dense = x->flags & C_CONTIGUOUS;
    if (number < 0 || (number >= STRING && number < HALF)) /* dtypes that have parameters */
        found->failed = 1;
    add_word(found, (uint64_t)number << 32 | (uint64_t)(x->flags & (C_CONTIGUOUS | ALIGNED | WRITEABLE)) << 16 |
                        (uint64_t)(x->dtype->byteorder & 0xff) << 8 | (uint64_t)(x->nd + 1));
    for (int d = 0; d < x->nd; d++)
        add_word(found, (uint64_t)x->shape[d]);
    for (int d = 0; d < x->nd && !dense; d++)
        add_word(found, (uint64_t)x->strides[d]);
}

/* Looks at a tuple of NumPy's arrays: their layouts, and their addresses. What is None has a layout and an address of
 * 0. Subclasses and other objects give None. */
static PyObject *read_arrays(PyObject *self, PyObject *arrays)
{
    (void)self;
    const Py_ssize_t count = PyTuple_Size(arrays);
    if (count < 0)
        return NULL;
    look found;
    begin_look(&found);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *const x = PyTuple_GetItem(arrays, i);
        found.failed |= x != Py_None && Py_TYPE(x) != array_type;
        add_word(&found, x == Py_None || found.failed ? 0 : ((const numpy_array *)x)->data);
    }
    for (Py_ssize_t i = 0; i < count && !found.failed; i++) {
        PyObject *const x = PyTuple_GetItem(arrays, i);
        if (x == Py_None)
            add_word(&found, 0);
        else
            add_array(&found, (const numpy_array *)x);
    }
    return end_look(&found, count);
}

static tensor_kind torch_kind;

void know_tensors(const tensor_kind *kind)
{
    torch_kind = *kind;
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

static int is_plain(PyObject *x)
{
    const uintptr_t type = (uintptr_t)Py_TYPE(x);
    return type == torch_kind.types[0] || type == torch_kind.types[1];
}

static uint64_t add_tensor(look *found, PyObject *x)
{
    dlpack_tensor t;
    if (!is_plain(x) || ((int (*)(PyObject *, dlpack_tensor *))torch_kind.describe)(x, &t)) {
        PyErr_Clear();
        found->failed = 1;
        return 0;
    }
    int64_t elements = 1;
    add_word(found, (uint64_t)(t.device & 0xff) << 56 | (uint64_t)(t.device_id & 0xffff) << 40 |
                        (uint64_t)t.code << 32 | (uint64_t)t.bits << 24 | (uint64_t)(t.ndim & 0xffffff));
    for (int d = 0; d < t.ndim; d++) {
        add_word(found, (uint64_t)t.shape[d]);
        add_word(found, t.strides ? (uint64_t)t.strides[d] : 0);
        elements *= t.shape[d];
    }
    if (elements && !t.data) /* zeros that are not stored, or what is on no device */
        found->failed = 1;
    return (uint64_t)(uintptr_t)t.data + t.byte_offset;
}

/* Looks at a tuple of torch's tensors: their layouts, and their addresses. What else is among them, or has no memory,
 * gives None. */
static PyObject *read_tensors(PyObject *self, PyObject *tensors)
{
    (void)self;
    const Py_ssize_t count = PyTuple_Size(tensors);
    if (count < 0)
        return NULL;
    look found;
    begin_look(&found);
    for (Py_ssize_t i = 0; i < count; i++)
        add_word(&found, 0);
    for (Py_ssize_t i = 0; i < count && !found.failed; i++) {
        const uint64_t address = add_tensor(&found, PyTuple_GetItem(tensors, i));
        found.words[i] = address;
    }
    return end_look(&found, count);
}

static void add_places(look *found, PyObject *x, int depth)
{
    enum { VALUE = 3 }; /* how deep the values of a dict in a dict are */
    if (is_plain(x)) {
        void *address = NULL;
        found->failed |= ((int (*)(void *, void **))torch_kind.locate)((char *)x + torch_kind.offset, &address);
        add_word(found, (uint64_t)(uintptr_t)address);
    } else if (depth < VALUE && PyDict_Check(x)) {
        PyObject *key, *value;
        for (Py_ssize_t at = 0; !found->failed && PyDict_Next(x, &at, &key, &value);) {
            add_word(found, (uint64_t)(uintptr_t)key);
            add_places(found, value, depth + 1);
        }
    } else if (depth < VALUE - 1 && PyList_Check(x)) {
        for (Py_ssize_t i = 0; !found->failed && i < PyList_Size(x); i++)
            add_places(found, PyList_GetItem(x, i), depth + 1);
    } else if (depth == VALUE && !PyType_IsSubtype(Py_TYPE(x), (PyTypeObject *)torch_kind.types[0])) {
        add_word(found, 0);
    } else {
        found->failed = 1;
    }
}

/* Looks where the tensors in a tuple are, and in lists and dicts within it, with the addresses of keys; what is something
 * else among values of a dict in a dict has 0. Something else elsewhere, or a tensor of another type, gives None. There
 * are no addresses apart. */
static PyObject *read_places(PyObject *self, PyObject *tensors)
{
    (void)self;
    const Py_ssize_t count = PyTuple_Size(tensors);
    if (count < 0)
        return NULL;
    look found;
    begin_look(&found);
    for (Py_ssize_t i = 0; i < count && !found.failed; i++)
        add_places(&found, PyTuple_GetItem(tensors, i), 1);
    return end_look(&found, 0);
}

static PyMethodDef functions[] = {
    {"read_arrays", read_arrays, METH_O, NULL},
    {"read_tensors", read_tensors, METH_O, NULL},
    {"read_places", read_places, METH_O, NULL},
};

void put_functions(uintptr_t names, uintptr_t type)
{
    const PyGILState_STATE before = PyGILState_Ensure(); /* cffi has let go of it */
    array_type = (PyTypeObject *)type;
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        PyObject *function = PyCFunction_New(&functions[i], NULL);
        if (function)
            PyDict_SetItemString((PyObject *)names, functions[i].ml_name, function);
        Py_XDECREF(function);
    }
    PyErr_Clear(); /* Python says what is missing */
    PyGILState_Release(before);
}
