"""The rules for kernels of your own: each as functions that a ``numba.njit`` or ``cuda.jit`` kernel calls.

For every rule of `fastopt.RULES` there is a namespace here, with two compiled functions, which are inlined into the
kernel that calls them::

    from fastopt.numba import adam

    @njit(parallel=True)
    def step(t, p, grad, m, v, lr):
        c = adam.fold(np.float32, t, lr, weight_decay=0.01)
        for i in prange(p.size):
            p[i], m[i], v[i] = adam.update(p[i], grad[i], m[i], v[i], c)

``fold`` makes hyper-parameters and the step into the tuple of coefficients that ``update`` takes, in float64 and
rounded once to the type of the arrays; ``update`` is one element's update, after the prologue that all rules share
(scale, decays). They are the rule table's own functions: with arrays of the type that ``fold`` was told, a kernel gives
the bits of every other backend, as long as it is compiled without fastmath.
"""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

from numba import njit

from .backends.numba_cpu import compiler
from .documentation import numba_text
from .rules import OWN, REQUIRED, RULES, Rule, Stage


def _fold(rule: Rule) -> Any:
    keys = [name for name in rule.hyper if name not in rule.initial and name != rule.vector]
    defaults = {name: rule.hyper[name].default for name in keys}
    if rule.vector:  # this is of one copy of the states: what comes first has no default
        defaults = {
            "lr": REQUIRED,
            _single(rule.vector): REQUIRED,
            "copies": REQUIRED,
            **{key: value for key, value in defaults.items() if key != "lr"},
        }
    arguments = ["real", "t"]
    for name, default in defaults.items():
        arguments.append(name if default is REQUIRED else f"{name}={'nan' if default is None else repr(default)}")
    arguments += ["grad_scale=1.0", *(f"{name}={initial!r}" for name, initial in rule.scalars.items())]
    values = [_single(name) if name == rule.vector else name for name in (*rule.folded, *rule.scalars)]
    flags = {name for name, hyper in rule.hyper.items() if hyper.flag}
    numbers = {name: name if name in flags else f"float({name})" for name in ("t", "lr", *rule.common, *values)}
    folded = [numbers[name] for name in ("t", *values)]
    shared = [numbers[name] for name in rule.row if name == "lr" or name in rule.common]
    first = ", ".join(f"real(first[{k}])" for k in range(OWN))
    count = len(rule.folds)
    rounded = ", ".join(f"real(folded[{k}])" for k in range(count))
    after = ", ".join(f"folded[{count + k}]" for k in range(len(rule.scalars)))
    source = (
        f"def fold({', '.join(arguments)}):\n"
        f"    first = fold_prologue(float(lr), ({', '.join(shared)}), float(grad_scale))\n"
        f"    folded = rule_fold({', '.join(folded)})\n"
        f"    c = ({first}, {rounded})\n"
        f"    return c{', ' + after if after else ''}\n"
    )
    names = {"rule_fold": compiler.compile_fold(rule), "fold_prologue": compiler.compile_fold_prologue(rule)}
    return _compiled(source, "fold", rule, **names, nan=math.nan)


def _single(vector: str) -> str:
    """Name one of the values of a vector."""
    return vector.removesuffix("s")


def _update(rule: Rule) -> Any:
    if rule.by_row:
        source = f"def update(p, g, c, rate):\n    return rule_update(*prologue(p, g, *c[:{OWN}]), rate)\n"
        names = {"rule_update": compiler.compile_update(rule), "prologue": compiler.prologue}
        return _compiled(source, "update", rule, **names)
    states = "".join(f", {name}" for name in rule.beside)
    own = ", ".join(f"c[{OWN + k}]" for k in range(len(rule.coefficients)))
    before = "" if rule.vector else f"    p, g = prologue(p, g, *c[:{OWN}])\n"
    source = f"def update(p, g{states}, c):\n{before}    return rule_update(p, g{states}, {own})\n"
    update = compiler.compile_update(rule)
    return _compiled(source, "update", rule, rule_update=update, prologue=compiler.prologue)


def _by_row(rule: Rule) -> Any:
    assert rule.by_row is not None
    states = ", ".join(rule.state_names)
    own = ", ".join(f"c[{OWN + k}]" for k in range(len(rule.coefficients)))
    source = f"def by_row(square, {states}, c):\n    return rule_by_row(square, {states}, {own})\n"
    return _compiled(source, "by_row", rule, rule_by_row=compiler.compile_rule(rule, rule.by_row))


def _measure(rule: Rule, stage: Stage) -> Any:
    states = "".join(f", {name}" for name in rule.measured)
    before = "".join(f", {name}" for name in rule.read_before)
    own = ", ".join(f"c[{OWN + k}]" for k in range(len(rule.folds))) + before
    source = (
        f"def measure(p, g{states}{before}, c):\n"
        f"    p, g = prologue(p, g, *c[:{OWN}])\n"
        f"    return rule_measure(p, g{states}, {own})\n"
    )
    names = {"rule_measure": compiler.compile_rule(rule, stage.measure), "prologue": compiler.prologue}
    return _compiled(source, "measure", rule, **names)


def _complete(rule: Rule, stage: Stage) -> Any:
    own = ", ".join(f"float(c[{OWN + k}])" for k in range(len(rule.folds)))
    measured, singles = (*rule.sums, *rule.singles), len(rule.singles)
    after = "".join(f"real(found[{k}]), " for k in range(singles))
    count = len(rule.coefficients) - len(rule.folds) - len(rule.read_before)
    added = ", ".join(
        [*map("real({})".format, rule.read_before), *(f"real(found[{singles + k}])" for k in range(count))]
    )
    source = (
        f"def complete(real, {', '.join(measured)}, c):\n"
        f"    found = stage_fold({', '.join(f'float({name})' for name in measured)}, {own})\n"
        f"    return {after}(*c, {added})\n"
    )
    return _compiled(source, "complete", rule, stage_fold=compiler.compile_rule(rule, stage.fold))


def _prologue(rule: Rule) -> Any:
    source = f"def prologue(p, g, c):\n    return shared(p, g, *c[:{OWN}])\n"
    return _compiled(source, "prologue", rule, shared=compiler.prologue)


def _compiled(source: str, name: str, rule: Rule, **names: Any) -> Any:
    exec(compile(source, f"<fastopt.numba.{rule.name}.{name}>", "exec"), names)
    function = names[name]
    function.__module__ = f"{__name__}.{rule.name}"
    function.__doc__ = numba_text(rule, name)
    return njit(error_model="numpy", nogil=True)(function)


def _namespace(rule: Rule) -> ModuleType:
    """A module, for within a kernel Numba looks names up in nothing else."""
    namespace = ModuleType(f"{__name__}.{rule.name}", f"{rule.name}: ``fold`` and ``update`` for kernels.")
    sys.modules[namespace.__name__] = namespace  # kernels that call these are cached on disk by that name
    functions = {"fold": _fold(rule), "update": _update(rule)}
    if rule.vector or rule.by_row:
        functions["prologue"] = _prologue(rule)
    if rule.by_row:
        functions["by_row"] = _by_row(rule)
    if rule.by_tensor:
        functions["measure"] = _measure(rule, rule.by_tensor)
        functions["complete"] = _complete(rule, rule.by_tensor)
    vars(namespace).update(functions)
    return namespace


_NAMESPACES = {name: _namespace(rule) for name, rule in RULES.items()}
globals().update(_NAMESPACES)
__all__ = list(_NAMESPACES)


def __getattr__(name: str) -> ModuleType:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; the rules are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
