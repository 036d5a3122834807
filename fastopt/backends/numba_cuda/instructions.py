"""Instructions for functions that Numba compiles for CUDA: memory by address, conversions, products of 64 bits."""

from __future__ import annotations

from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import intrinsic

GLOBAL = 1  # the address space
VECTOR = 16  # bytes that one instruction moves at most
_WORD = ir.IntType(32)


def _pointer(builder, address, ty):
    return builder.inttoptr(address, ir.PointerType(ty, GLOBAL))


@intrinsic
def load(typing, address, like):
    """The element at an address, of the type of `like`."""

    def codegen(context, builder, signature, args):
        return builder.load(_pointer(builder, args[0], context.get_data_type(signature.return_type)))

    return like.dtype(types.int64, like), codegen


@intrinsic
def store(typing, address, value):
    """Stores an element at an address."""

    def codegen(context, builder, signature, args):
        builder.store(args[1], _pointer(builder, args[0], context.get_data_type(signature.args[1])))
        return context.get_dummy_value()

    return types.void(types.int64, value), codegen


@intrinsic
def add_bits(typing, address, bits):
    """Sets further bits of the uint32 at an address, whoever else does."""

    def codegen(context, builder, signature, args):
        builder.atomic_rmw("or", _pointer(builder, args[0], _WORD), args[1], "monotonic")
        return context.get_dummy_value()

    return types.void(types.int64, types.uint32), codegen


@intrinsic
def load_vector(typing, address, like):
    """The 16 bytes at an address that is a multiple of 16, as a tuple of elements of the type of `like`.

    Adjacent loads would not be joined, nor loads through arrays or records: only a load of a vector is.
    """
    count = VECTOR * 8 // like.dtype.bitwidth

    def codegen(context, builder, signature, args):
        vector = ir.VectorType(context.get_data_type(signature.return_type.dtype), count)
        found = builder.load(_pointer(builder, args[0], vector), align=VECTOR)
        word = ir.IntType(32)
        elements = [builder.extract_element(found, word(k)) for k in range(count)]
        return context.make_tuple(builder, signature.return_type, elements)

    return types.UniTuple(like.dtype, count)(types.int64, like), codegen


@intrinsic
def store_vector(typing, address, elements):
    """Stores a tuple of 16 bytes at an address that is a multiple of 16."""

    def codegen(context, builder, signature, args):
        kind = signature.args[1]
        vector = ir.VectorType(context.get_data_type(kind.dtype), kind.count)
        word, found = ir.IntType(32), ir.Constant(vector, ir.Undefined)
        for k in range(kind.count):
            found = builder.insert_element(found, builder.extract_value(args[1], k), word(k))
        builder.store(found, _pointer(builder, args[0], vector), align=VECTOR)
        return context.get_dummy_value()

    return types.void(types.int64, elements), codegen


@intrinsic
def load_tuple(typing, address, like):
    """The elements at an address, as a tuple as `like` is: of elements, or of such tuples."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(32)

        def load_from(pointer, kind, first):
            if not isinstance(kind, types.UniTuple):
                return builder.load(builder.gep(pointer, [word(first)]))
            per = len(kind) and _flat_count(kind.dtype)
            parts = [load_from(pointer, kind.dtype, first + k * per) for k in range(len(kind))]
            return context.make_tuple(builder, kind, parts)

        kind = signature.return_type
        while isinstance(kind, types.UniTuple):
            kind = kind.dtype
        pointer = _pointer(builder, args[0], context.get_data_type(kind))
        return load_from(pointer, signature.return_type, 0)

    return like(types.int64, like), codegen


@intrinsic
def varying(typing, number, other):
    """The number, of which the compiler cannot tell that it is the same for each `other`: of a loop as short as that of
    SGD, with a choice by it, it would make two.
    """
    whole = isinstance(number, types.Integer)
    letter = {32: "fr", 64: "dl"}[number.bitwidth][whole]

    def codegen(context, builder, signature, args):
        kind = context.get_data_type(number)
        same = ir.FunctionType(kind, [kind, kind])
        return builder.asm(same, f"mov.b{number.bitwidth} $0, $1;", f"={letter},{letter},{letter}", args, False)

    return number(number, number), codegen


@intrinsic
def decode_float16(typing, bits):
    """The float32 that a float16's bits stand for, by the device's own conversion."""

    def codegen(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), codegen


@intrinsic
def encode_float16(typing, number):
    """The bits of a float32 as float16, rounded to nearest, ties to even, by the device's own conversion."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), codegen


@intrinsic
def encode_bfloat16(typing, number):
    """The bits of a float32 as bfloat16, rounded to nearest, ties to even, by the device's own conversion."""

    def codegen(context, builder, signature, args):
        half = ir.FunctionType(ir.IntType(16), [ir.FloatType()])
        return builder.asm(half, "cvt.rn.bf16.f32 $0, $1;", "=h,f", args, False)

    return types.uint16(types.float32), codegen


@intrinsic
def wide_product(typing, a, b):
    """The upper and the lower half of the product of two uint32, without a compiler that goes on in 64 bits."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(32)
        both = ir.FunctionType(ir.LiteralStructType([word, word]), [word, word])
        code = "{ .reg .b64 %product; mul.wide.u32 %product, $2, $3; mov.b64 {$1, $0}, %product; }"
        found = builder.asm(both, code, "=r,=r,r,r", args, False)
        halves = [builder.extract_value(found, k) for k in range(2)]
        return context.make_tuple(builder, signature.return_type, halves)

    return types.UniTuple(types.uint32, 2)(types.uint32, types.uint32), codegen


@intrinsic
def byte_of(typing, word, k):
    """Byte k of a uint32, from the lowest."""

    def codegen(context, builder, signature, args):
        selector = builder.or_(builder.trunc(args[1], _WORD), _WORD(0x4440))
        return _permuted(builder, args[0], _WORD(0), selector)

    return types.uint32(types.uint32, types.int64), codegen


@intrinsic
def low_and_high_byte(typing, low, high, k):
    """Byte k of a uint32, none of whose bytes has its uppermost bit, and that of another one as the uppermost byte."""

    def codegen(context, builder, signature, args):
        number = builder.trunc(args[2], _WORD)
        # Byte k + 8 is that uppermost bit, eight times.
        selector = builder.add(builder.mul(number, _WORD(0x1111)), _WORD(0x4880))
        return _permuted(builder, *args[:2], selector)

    return types.uint32(types.uint32, types.uint32, types.int64), codegen


@intrinsic
def with_sign_of(typing, word, sign):
    """A uint32 with the uppermost bit of another one."""

    def codegen(context, builder, signature, args):
        two = ir.FunctionType(_WORD, [_WORD, _WORD])
        return builder.asm(two, "lop3.b32 $0, $1, $2, 0x80000000, 0xD8;", "=r,r,r", args, False)

    return types.uint32(types.uint32, types.uint32), codegen


@intrinsic
def largest_of_warp(typing, number):
    """The largest of a warp's int32, of which none is negative."""

    def codegen(context, builder, signature, args):
        one = ir.FunctionType(ir.IntType(32), [ir.IntType(32)])
        return builder.asm(one, "redux.sync.max.u32 $0, $1, 0xffffffff;", "=r,r", args, True)

    return types.int32(types.int32), codegen


@intrinsic
def upper_bytes(typing, a, b, c, d):
    """The uppermost bytes of four uint32 as one, the first lowest."""

    def codegen(context, builder, signature, args):
        pairs = [_permuted(builder, *args[k : k + 2], _WORD(0x0073)) for k in (0, 2)]
        return _permuted(builder, *pairs, _WORD(0x5410))

    return types.uint32(types.uint32, types.uint32, types.uint32, types.uint32), codegen


def _permuted(builder, low, high, selector):
    """Four of the eight bytes of two words, and signs of these, by PTX's ``prmt``."""
    three = ir.FunctionType(_WORD, [_WORD] * 3)
    return builder.asm(three, "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [low, high, selector], False)


def _flat_count(kind):
    """Count the elements of a type of nested tuples."""
    return len(kind) * _flat_count(kind.dtype) if isinstance(kind, types.UniTuple) else 1
