"""IEEE 754's arithmetic, whatever mode the calling thread is in: csrc/arithmetic.h for what Numba compiles."""

from __future__ import annotations

import platform

import llvmlite.ir
from numba import types
from numba.extending import intrinsic

from .numba_cache import compiled

_MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
# The register's content, and the bits beside it in which operations leave flags.
_IEEE, _FLAGS = (0x1F80, 0x3F) if _MACHINE == "x86_64" else (0, 0)
_BYTES, _WORD, _LONG = llvmlite.ir.IntType(8).as_pointer(), llvmlite.ir.IntType(32), llvmlite.ir.IntType(64)


def _call(builder, name, result, *args):
    kind = llvmlite.ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(builder.module.declare_intrinsic(name, (), kind), args)


@intrinsic
def _get_mode(typing):
    def codegen(context, builder, signature, args):
        if _MACHINE == "x86_64":
            place = builder.alloca(_WORD)
            _call(builder, "llvm.x86.sse.stmxcsr", llvmlite.ir.VoidType(), builder.bitcast(place, _BYTES))
            return builder.zext(builder.load(place), _LONG)
        if _MACHINE == "aarch64":
            return _call(builder, "llvm.aarch64.get.fpcr", _LONG)
        return _LONG(_IEEE)

    return types.int64(), codegen


@intrinsic
def _set_mode(typing, mode):
    def codegen(context, builder, signature, args):
        if _MACHINE == "x86_64":
            place = builder.alloca(_WORD)
            builder.store(builder.trunc(args[0], _WORD), place)
            _call(builder, "llvm.x86.sse.ldmxcsr", llvmlite.ir.VoidType(), builder.bitcast(place, _BYTES))
        if _MACHINE == "aarch64":
            _call(builder, "llvm.aarch64.set.fpcr", llvmlite.ir.VoidType(), args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@compiled
def _enter():
    before = _get_mode()
    if before & ~_FLAGS != _IEEE:
        _set_mode(_IEEE)
    return before


@compiled
def _leave(before):
    if before & ~_FLAGS != _IEEE:
        _set_mode(before)


class ieee_arithmetic:
    """Until the block's end this thread rounds to nearest and keeps subnormal numbers; then it is as it was."""

    __slots__ = ("_before",)

    def __enter__(self):
        self._before = _enter()

    def __exit__(self, *_):
        _leave(self._before)
