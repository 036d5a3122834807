"""Memory by address, for functions that Numba compiles for the CPU."""

from __future__ import annotations

import llvmlite.ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..numba_cache import INNER


def _make_array(context, builder, signature, args):
    ty = signature.return_type
    array = context.make_array(ty)(context, builder)
    itemsize = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(ty.dtype)))
    array.data = builder.inttoptr(args[0], context.get_data_type(ty.dtype).as_pointer())
    array.shape = cgutils.pack_array(builder, [args[1]])
    array.strides = cgutils.pack_array(builder, [itemsize])
    array.itemsize = itemsize
    array.nitems = args[1]
    array.meminfo = llvmlite.ir.Constant(array.meminfo.type, None)
    array.parent = llvmlite.ir.Constant(array.parent.type, None)
    return array._getvalue()


@intrinsic
def array_at(typing, address, size, like):
    """The C-contiguous array of `size` elements at an address, of the type of `like`: an array or a dtype."""
    return types.Array(like.dtype, 1, "C")(types.int64, types.int64, like), _make_array


@intrinsic
def unaligned_at(typing, address, size, like):
    """Load or store at an address of any alignment."""
    return types.Array(like.dtype, 1, "C", aligned=False)(types.int64, types.int64, like), _make_array


@intrinsic
def on_stack(typing, size, like):
    """A new array of `size` elements that lasts as long as the function that calls this; `like` may be a dtype.

    Its references are not counted, which for small pieces of work would cost more than the work.
    """

    def codegen(context, builder, signature, args):
        memory = builder.alloca(context.get_data_type(signature.return_type.dtype), args[0])
        address = builder.ptrtoint(memory, context.get_value_type(types.int64))
        return _make_array(context, builder, signature, [address, args[0]])

    return types.Array(like.dtype, 1, "C")(types.int64, like), codegen


@intrinsic
def address_of(typing, array):
    """Return the address of an array's first element."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, context.get_value_type(types.int64))

    return types.int64(array), codegen


@intrinsic
def call(typing, function, a, b, c, d, e):
    """Calls the function at an address, which takes five int64 and returns nothing."""
    sig = types.void(types.int64, types.int64, types.int64, types.int64, types.int64, types.int64)

    def codegen(context, builder, signature, args):
        ty = llvmlite.ir.FunctionType(llvmlite.ir.VoidType(), [arg.type for arg in args[1:]])
        builder.call(builder.inttoptr(args[0], ty.as_pointer()), args[1:])
        return context.get_dummy_value()

    return sig, codegen


@intrinsic
def load(typing, address, like):
    """The element at an address of any alignment."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], context.get_data_type(signature.return_type).as_pointer())
        return builder.load(pointer, align=1)

    return like.dtype(types.int64, like), codegen


@intrinsic
def store(typing, address, value):
    """Stores an element at an address of any alignment."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], context.get_data_type(signature.args[1]).as_pointer())
        builder.store(args[1], pointer, align=1)
        return context.get_dummy_value()

    return types.void(types.int64, value), codegen


def _prefetch(locality):
    def codegen(context, builder, signature, args):
        byte, word = llvmlite.ir.IntType(8).as_pointer(), llvmlite.ir.IntType(32)
        kind = llvmlite.ir.FunctionType(llvmlite.ir.VoidType(), [byte, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(function, [builder.inttoptr(args[0], byte), word(0), word(locality), word(1)])  # to read; data
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def prefetch(typing, address):
    """Fetches the cache line at an address, which is soon to be read, to the second-level cache."""
    return _prefetch(2)


@intrinsic
def prefetch_near(typing, address):
    """Fetches the cache line at an address, which is soon to be read, to all levels of the cache."""
    return _prefetch(3)


@intrinsic
def fetch_add(typing, counter, step):
    """Adds to the one element of an array, as one operation whatever other threads do; the value before.

    Whoever sees the new value sees what was written before it.
    """

    def codegen(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.atomic_rmw("add", array.data, args[1], "acq_rel")

    return types.int64(counter, types.int64), codegen


@njit(**INNER)
def gather(tile, address, stride, n):
    """Copies n elements at an address into a tile."""
    for i in range(n):
        tile[i] = load(address + i * stride, tile)


@njit(**INNER)
def scatter(tile, address, stride, n):
    """Copies a tile's first n elements to an address."""
    for i in range(n):
        store(address + i * stride, tile[i])
