"""Kernels that do parts of a number of elements, as what C calls in several threads."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import llvmlite.ir
import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..numba_cache import INNER, bind, compiled, digest_of


@intrinsic
def _pack(typing, kernel, table, first, place, room):
    """Writes a kernel's arguments to a place with so much room, if they fit: the address of a function that does the
    elements [begin, end) behind the first by what is there, and the bytes that it takes. Arrays are not kept alive. The
    kernel must raise nothing: there is nobody to tell.
    """
    kinds = (*table.types, types.int64, types.int64)
    inner = kernel.get_call_type(typing, kinds, {})

    def codegen(context, builder, signature, args):
        made = kernel.dispatcher.get_compile_result(inner)
        context.add_linking_libs([made.library])
        word, byte = llvmlite.ir.IntType(64), llvmlite.ir.IntType(8).as_pointer()
        _, values, first, place, room = args
        for i, kind in enumerate(table.types):
            if isinstance(kind, types.Array):  # its owners are those of this call
                array = context.make_array(kind)(context, builder, builder.extract_value(values, i))
                array.meminfo = llvmlite.ir.Constant(array.meminfo.type, None)
                array.parent = llvmlite.ir.Constant(array.parent.type, None)
                values = builder.insert_value(values, array._getvalue(), i)
        kept = llvmlite.ir.LiteralStructType([values.type, word])
        size = word(context.get_abi_sizeof(kept))
        with builder.if_then(builder.icmp_signed(">=", room, size)):
            to = builder.inttoptr(place, kept.as_pointer())
            builder.store(values, cgutils.gep_inbounds(builder, to, 0, 0))
            builder.store(first, cgutils.gep_inbounds(builder, to, 0, 1))

        form = llvmlite.ir.FunctionType(llvmlite.ir.VoidType(), [byte, word, word])
        part = llvmlite.ir.Function(builder.module, form, f"{builder.function.name}.part")
        part.linkage = "internal"
        within = llvmlite.ir.IRBuilder(part.append_basic_block())
        own = within.load(within.bitcast(part.args[0], kept.as_pointer()))
        before = within.extract_value(own, 1)
        bounds = [within.add(before, bound) for bound in part.args[1:]]
        values = cgutils.unpack_tuple(within, within.extract_value(own, 0), len(table))
        context.call_internal_no_propagate(within, made.fndesc, inner, [*values, *bounds])
        within.ret_void()
        return context.make_tuple(builder, signature.return_type, [builder.ptrtoint(part, word), size])

    return types.UniTuple(types.int64, 2)(kernel, table, *[types.int64] * 3), codegen


# What packs a kernel: with each argument by name, for Numba finds their types faster than those of a tuple's.
_PACK = """
def pack(_first, _place, _room, {names}):
    return pack_parts(kernel, ({names},), _first, _place, _room)
"""


class Part(NamedTuple):
    """A kernel with its arguments, which it keeps alive.

    Attributes
    ----------
    function : int
        The address of what does the elements from one to another, as `fastopt_part` in csrc/internal.h.
    context : numpy.ndarray
        What it takes.
    table : tuple
        The arguments.
    """

    function: int
    context: np.ndarray
    table: tuple[Any, ...]

    @classmethod
    def of(cls, kernel: Any, table: tuple[Any, ...], first: int = 0) -> Part:
        """A kernel, from `parallel`, with arguments, for the elements behind the first."""
        context = np.empty(64, np.int64)
        function, size = kernel(first, context.ctypes.data, context.nbytes, *table)
        if size > context.nbytes:
            context = np.empty(-(-size // context.itemsize), np.int64)
            function, _ = kernel(first, context.ctypes.data, context.nbytes, *table)
        return cls(function, context, table)


def parallel(function: Callable[..., Any], *modules: ModuleType, name: str = "", **names: Any) -> Any:
    """Compile a kernel for `Part.of`: its last arguments are the elements between which it works.

    `modules` are those beside its own whose source it is compiled from, `names` what some of its globals stand for.
    """
    room = sys.modules[function.__module__]
    name = f"{room.__name__.rpartition('.')[2]}_{name or function.__name__}"
    namespace: dict[str, Any] = {"pack_parts": _pack, "__name__": __name__}  # what is loaded asks for the module
    source = _PACK.format(names=", ".join(list(inspect.signature(function).parameters)[:-2]))
    exec(compile(source, __file__, "exec"), namespace)  # this file, beside which it is cached
    kernel = njit(**INNER)(bind(function, name, **names))
    return compiled(bind(namespace["pack"], f"{name}_{digest_of(room, *modules)}", kernel=kernel))
