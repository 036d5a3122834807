"""Kernels that do parts of a number of elements, as what C calls in several threads."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import llvmlite.ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..numba_cache import INNER, bind, compiled, digest_of


@intrinsic
def _run_parts(typing, kernel, table, team, first, n, grain, share, align, threads):
    """Calls a kernel for parts of n elements from the first on, by the function at the address `team`; for all of them
    at once where that is 0. The kernel must raise nothing: there is nobody to tell.
    """
    kinds = (*table.types, types.int64, types.int64)
    inner = kernel.get_call_type(typing, kinds, {})

    def codegen(context, builder, signature, args):
        made = kernel.dispatcher.get_compile_result(inner)
        context.add_linking_libs([made.library])
        word, byte = llvmlite.ir.IntType(64), llvmlite.ir.IntType(8).as_pointer()
        _, values, team, first, n, *how = args
        kept = cgutils.alloca_once(builder, llvmlite.ir.LiteralStructType([values.type, word]))
        builder.store(values, cgutils.gep_inbounds(builder, kept, 0, 0))
        builder.store(first, cgutils.gep_inbounds(builder, kept, 0, 1))

        form = llvmlite.ir.FunctionType(llvmlite.ir.VoidType(), [byte, word, word])
        part = llvmlite.ir.Function(builder.module, form, f"{builder.function.name}.part")
        part.linkage = "internal"
        within = llvmlite.ir.IRBuilder(part.append_basic_block())
        own = within.load(within.bitcast(part.args[0], kept.type))
        before = within.extract_value(own, 1)
        bounds = [within.add(before, bound) for bound in part.args[1:]]
        values = cgutils.unpack_tuple(within, within.extract_value(own, 0), len(table))
        context.call_internal_no_propagate(within, made.fndesc, inner, [*values, *bounds])
        within.ret_void()

        place = builder.bitcast(kept, byte)
        with builder.if_else(builder.icmp_unsigned("==", team, word(0))) as (alone, together):
            with alone:
                builder.call(part, [place, word(0), n])
            with together:
                *how, threads = how
                threads = builder.trunc(threads, llvmlite.ir.IntType(32))
                form = llvmlite.ir.FunctionType(llvmlite.ir.VoidType(), [part.type, byte, *[word] * 4, threads.type])
                builder.call(builder.inttoptr(team, form.as_pointer()), [part, place, n, *how, threads])
        return context.get_dummy_value()

    return types.void(kernel, table, *[types.int64] * 7), codegen


# What calls a kernel: with each argument by name, for Numba finds their types faster than those of a tuple's.
_RUN = """
def run(_first, _n, _grain, _share, _align, _threads, _team, {names}):
    run_parts(kernel, ({names},), _team, _first, _n, _grain, _share, _align, _threads)
"""


def parallel(function: Callable[..., Any], *modules: ModuleType, name: str = "", **names: Any) -> Any:
    """Compile a kernel for `run_parallel`: its last arguments are the elements between which it works.

    `modules` are those beside its own whose source it is compiled from, `names` what some of its globals stand for.
    """
    room = sys.modules[function.__module__]
    name = f"{room.__name__.rpartition('.')[2]}_{name or function.__name__}"
    namespace: dict[str, Any] = {"run_parts": _run_parts, "__name__": __name__}  # what is loaded asks for the module
    source = _RUN.format(names=", ".join(list(inspect.signature(function).parameters)[:-2]))
    exec(compile(source, __file__, "exec"), namespace)  # this file, beside which it is cached
    kernel = njit(**INNER)(bind(function, name, **names))
    return compiled(bind(namespace["run"], f"{name}_{digest_of(room, *modules)}", kernel=kernel))
