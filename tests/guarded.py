"""Calls of the C library with arrays at the edge of memory that cannot be touched: a byte too far ends the process.

``python -m tests.guarded end`` puts each array before such a page, ``begin`` behind one.
"""

import ctypes
import itertools
import mmap
import sys

import numpy as np

from fastopt.backends.native import ffi, lib
from fastopt.rules import RULES

PAGE = mmap.PAGESIZE
_BLOCK, _BLOCK_BYTES = lib.FASTOPT_BLOCK, lib.FASTOPT_BLOCK_BYTES
_SIZES = {lib.FASTOPT_FLOAT32: 4, lib.FASTOPT_FLOAT64: 8, lib.FASTOPT_BFLOAT16: 2, lib.FASTOPT_FLOAT16: 2}
_libc = ctypes.CDLL(None)


class Guarded:
    """Makes arrays between two pages that cannot be touched, at one of the two."""

    def __init__(self, edge):
        self.at_end, self.memory = edge == "end", []

    def __call__(self, values, dtype=None):
        """A copy of an array in such a place."""
        values = np.ascontiguousarray(values, dtype)
        inside = -(-values.nbytes // PAGE) * PAGE
        self.memory.append(mmap.mmap(-1, inside + 2 * PAGE))
        whole = np.frombuffer(self.memory[-1], np.uint8)
        for guard in (0, PAGE + inside):
            if _libc.mprotect(ctypes.c_void_p(whole.ctypes.data + guard), ctypes.c_size_t(PAGE), 0):
                raise OSError("mprotect")
        begin = PAGE + (inside - values.nbytes if self.at_end else 0)
        copy = whole[begin : begin + values.nbytes].view(values.dtype).reshape(values.shape)
        copy[...] = values
        return copy

    def table(self, arrays):
        """The addresses of arrays, in such a place."""
        return self([array.ctypes.data for array in arrays], np.uint64)

    def bytes(self, dtype, n):
        """An array of n elements as it is stored."""
        return self(np.zeros(-(-n // _BLOCK) * _BLOCK_BYTES if dtype > 3 else n * _SIZES[dtype], np.uint8))


def pointer(array, kind="void *"):
    return ffi.cast(kind, array.ctypes.data)


def coefficients_of(guarded, name):
    """The number of a rule, and coefficients of its first step."""
    rule = lib.fastopt_find_rule(name.encode())
    found = lib.fastopt_get_rule(rule)
    hyper, scalars = guarded(np.zeros(found.hyper)), guarded(np.zeros(found.scalars + 1))[:-1]
    coefficients = guarded(np.zeros(found.coefficients))
    call = [pointer(array, "double *") for array in (hyper, scalars, coefficients)]
    done(lib.fastopt_defaults(rule, *call[:2]))
    done(lib.fastopt_fold(rule, 1, 1.0, *call))
    return rule, found.states, coefficients


def done(code):
    assert code == lib.FASTOPT_OK, ffi.string(lib.fastopt_message(code))


def update(guarded, name, dtype, sizes):
    """A step of tensors of the compute type."""
    rule, states, coefficients = coefficients_of(guarded, name)
    arrays = [guarded.bytes(dtype, n) for n in sizes for _ in range(2 + states)]
    sizes, table = guarded(sizes, np.int64), guarded.table(arrays)
    call = pointer(sizes, "int64_t *"), pointer(table, "void **"), pointer(coefficients, "double *")
    done(lib.fastopt_update(rule, dtype, 1, len(sizes), *call, 1))


def update_stored(guarded, name, param, state, options, sizes):
    """A step of tensors that are stored in other dtypes."""
    rule, states, coefficients = coefficients_of(guarded, name)
    dtypes = [param, param, *[state] * states]
    dtypes += [lib.FASTOPT_FLOAT32 if options & lib.FASTOPT_MASTER else param] * (
        options & (lib.FASTOPT_MASTER | lib.FASTOPT_KAHAN) != 0
    )
    arrays = [guarded.bytes(dtype, n) for n in sizes for dtype in dtypes]
    sizes, table, dtypes = guarded(sizes, np.int64), guarded.table(arrays), guarded(dtypes, np.int32)
    storage = ffi.new("fastopt_storage *", (pointer(dtypes, "int32_t *"), options, 0.0, 0, 0))
    call = pointer(sizes, "int64_t *"), pointer(table, "void **"), pointer(coefficients, "double *"), storage
    done(lib.fastopt_update_stored(rule, lib.FASTOPT_FLOAT32, 1, len(sizes), *call, 1, 1))


def update_rows(guarded, name, duplicates, width, integer, bags):
    """A step of some rows; the last row and the last row of the gradient are among them."""
    rule, states, coefficients = coefficients_of(guarded, name)
    indices = guarded([19, 0, 7, 19], integer)
    rows = {"rows": 20, "width": width, "count": 4, "index_size": indices.itemsize, "duplicates": duplicates}
    rows["indices"] = pointer(indices)
    if bags:
        source, weights = guarded([1, 0, 1, 1], np.int64), guarded(np.ones(4, np.float32))
        rows |= {"source": pointer(source, "int64_t *"), "weights": pointer(weights)}
    arrays = [guarded(np.ones((n, width), np.float32)) for n in (20, 2 if bags else 4)]
    arrays += [guarded(np.ones((20,) if RULES[name].by_row else (20, width), np.float32)) for _ in range(states)]
    strides, table = guarded([array.strides[0] for array in arrays], np.int64), guarded.table(arrays)
    call = pointer(table, "void **"), pointer(strides, "int64_t *"), pointer(coefficients, "double *")
    done(lib.fastopt_update_rows(rule, lib.FASTOPT_FLOAT32, 1, ffi.new("fastopt_rows *", rows), *call, 1))


def square_sums(guarded, dtype, n):
    """A norm of one run."""
    blocks = -(-n // lib.FASTOPT_NORM_BLOCK)
    run, sums = guarded.bytes(dtype, n), guarded(np.zeros(blocks))
    table, strides = guarded.table([run]), guarded([_SIZES[dtype]], np.int64)
    ends = guarded([0, n], np.int64), guarded([0, blocks], np.int64)
    tables = [pointer(array, "int64_t *") for array in (strides, *ends)]
    done(lib.fastopt_square_sums(dtype, 1, pointer(table, "void **"), *tables, pointer(sums, "double *"), 1))


def stream(guarded, count, n):
    """The traffic of an update."""
    table = guarded.table([guarded.bytes(lib.FASTOPT_FLOAT32, n) for _ in range(count)])
    done(lib.fastopt_stream(n, count, pointer(table, "float **"), 0, 1))
    done(lib.fastopt_stream_reads(n, count, pointer(table, "float **"), 0, 1))


def stream_rows(guarded, count, width):
    """The traffic of an update of three rows, of which the second has two gradients."""
    table = guarded.table([guarded.bytes(lib.FASTOPT_FLOAT32, 4 * width) for _ in range(count)])
    lists = [guarded(numbers, np.int64) for numbers in ([0, 2, 3], [0, 1, 3, 4], [3, 0, 1, 2])]
    tables = [pointer(array, "int64_t *") for array in lists]
    done(lib.fastopt_stream_rows(3, *tables, width, count, pointer(table, "float **"), 1))


def main(edge):
    """Makes all the calls; prints how many."""
    compute = lib.FASTOPT_FLOAT32, lib.FASTOPT_FLOAT64
    stored = [*_SIZES, lib.FASTOPT_BLOCKS_SIGNED, lib.FASTOPT_BLOCKS_POSITIVE]
    stored.remove(lib.FASTOPT_FLOAT64)
    params = [dtype for dtype in stored if dtype in _SIZES]
    kinds = {
        update: (("sgd", "adam"), compute, ([1, 5], [63, 64, 65], [4097])),
        update_stored: (
            ("sgd", "adam"),
            params,
            stored,
            (0, lib.FASTOPT_STOCHASTIC, lib.FASTOPT_KAHAN, lib.FASTOPT_MASTER, lib.FASTOPT_DITHER),
            ([1, 31], [32, 33, 255], [256, 257], [1000]),
        ),
        update_rows: (("adam", "rowwise_adagrad"), (0, 1, 2), (1, 3, 16, 700), (np.int32, np.int64), (False, True)),
        square_sums: (_SIZES, (1, 15, 17, 512, 4096, 5000)),
        stream: (range(2, 6), (1, 63, 64, 65, 1000)),
        stream_rows: (range(2, 6), (1, 16, 17, 64, 130)),
    }
    made = 0
    for call, choices in kinds.items():
        for arguments in itertools.product(*choices):
            if call is update_stored and arguments[1] == lib.FASTOPT_FLOAT32 and arguments[3] & 7:
                continue  # what rounding loses is of 16 bits
            call(Guarded(edge), *arguments)
            made += 1
    print(made)


if __name__ == "__main__":
    main(sys.argv[1])
