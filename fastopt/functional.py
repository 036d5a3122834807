"""The rules as functions: one call, one step, in place, no objects.

Every rule of `fastopt.RULES` has its function here, made from the table, and so have rules of whole matrices, such as::

    adam(param, grad, exp_avg, exp_avg_sq, *, step, lr=1e-3, beta1=0.9, ...)

``param`` and the others are arrays, or equally long lists of arrays: one call updates them all. All functions take:

param, grad, states : array, or list of arrays
    Of one shape; all but ``grad`` are written. Each is float32, bfloat16 or float16, in any combination, and the update
    is computed in float32; or all are float64. A state may be in blocks of 8-bit floats: bytes as `fastopt.Adam` with
    ``state_dtype="8bit"`` keeps them. ``grad`` may be a `fastopt.RowSparse`.
step : int
    The 1-based number of this step.
hyper-parameters : float or bool
    By keyword. There are no schedules: each call has its own values.
weight_decay : float, default 0.0
    L2 penalty: added to the gradient, times the parameter. A finite number >= 0.
decoupled_weight_decay : float, default 0.0
    Decay of the parameter itself, times lr, before the update. A finite number >= 0.
maximize : bool, default False
    Ascend instead of descend: the gradient's sign is flipped.
grad_scale : float, default 1.0
    A factor of the gradient, within the pass.
gradient_noise : fastopt.GradientNoise, optional
    Normal noise that is added to the gradient, within the pass.
first_element : int, default 0
    The number of the first parameter's first element, of which noise depends; the others' follow.
backend : str, optional
    "native", "numba" or "numba-cuda"; by default what `fastopt.use_backend` chose, else by the arrays.
threads : int, optional
    At most so many threads; by default `fastopt.get_num_threads`.

A rule that reads further arrays beside the gradient takes them by keyword, as ``param``.

What is wrong is a ValueError or TypeError before any byte is written; the message names the argument, what was found
and what would do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, NoReturn

from . import settings
from .binding.update import Known, Update, keys_of, row_of
from .checks import did_you_mean
from .documentation import function_text
from .jobs.noise import GradientNoise, check_noise
from .jobs.storage import check_first_element
from .rules import EVERY_RULE, FactoredRule, Rule


def _as_lists(rule: Rule, arrays: Sequence[Any]) -> list[Sequence[Any]]:
    names = ("param", "grad", *rule.arrays)
    if isinstance(arrays[0], (list, tuple)):  # a state that no parameter has may be left out
        arrays = [[None] * len(arrays[0]) if array is None else array for array in arrays]
    if not isinstance(arrays[0], (list, tuple)):
        for array, name in zip(arrays, names, strict=True):
            if isinstance(array, (list, tuple)):
                raise TypeError(f"{name}: found a {type(array).__name__}, expected one array as param is")
        return [[array] for array in arrays]
    for array, name in zip(arrays, names, strict=True):
        if not isinstance(array, (list, tuple)):
            raise TypeError(f"{name}: found {type(array).__name__}, expected a list of arrays as param is")
        if len(array) != len(arrays[0]):
            raise ValueError(f"{name}: found {len(array)} arrays, expected {len(arrays[0])} as param has")
    return list(arrays)


#: The updates that have been bound.
_known = Known(1 << 16)


def _update(
    rule: Rule,
    arrays: tuple[Any, ...],
    step: Any,
    values: tuple[Any, ...],
    grad_scale: float,
    scalars: Any,
    gradient_noise: GradientNoise | None,
    first_element: Any,
    backend: str | None,
    threads: int | None,
) -> None:
    """One call of a functional form."""
    limit = settings.threads if threads is None else settings.check_threads("threads", threads)
    if backend is not None and type(backend) is not str:
        backend = settings.check_backend("backend", backend)
    noise = None
    if gradient_noise is not None or type(first_element) is not int or first_element:
        added, first_element = check_noise(gradient_noise), check_first_element(first_element)
        noise = None if added is None else (added, first_element)
    members = arrays
    if type(arrays[0]) in (list, tuple):
        members = tuple(chain.from_iterable(_as_lists(rule, arrays)))
    update = _known.take(rule, members, backend, noise) or _known.add(
        Update(rule, _as_lists(rule, arrays), values, backend, noise), members, backend
    )
    try:
        update.step(step, values, grad_scale, limit, scalars)
    finally:
        update.waiting.append(update)


def _refuse(rule: Rule, unknown: Iterable[str]) -> NoReturn:
    """Says that a function has no such arguments."""
    known = list(inspect.signature(globals()[rule.name]).parameters)
    found = next(iter(unknown))
    raise TypeError(f"{rule.name}: found {found!r}, expected {', '.join(known)}{did_you_mean(found, known)}")


def _make(rule: Rule) -> Callable[..., None]:
    """The function of a rule, with its own signature."""
    keys = keys_of(rule)
    defaults = rule.defaults()
    required = "".join(f", {key}" for key in keys if key not in defaults)
    optional = "".join(f", {key}=_defaults[{key!r}]" for key in keys if key in defaults)
    scalars = "".join(f", {name}=None" for name in rule.scalars)
    given = f"({', '.join(rule.scalars)},)" if rule.scalars else "None"
    numbers = [key for key in keys if not rule.hyper[key].flag]
    numbers_are_flags = " or ".join(f"{key} is True or {key} is False" for key in numbers)  # 1.0 == True
    states = "".join(f", {name}{'=None' if isinstance(rule, FactoredRule) else ''}" for name in rule.state_names)
    inputs, taken = "".join(f"{name}, " for name in rule.inputs), ", ".join(("param", "grad", *rule.arrays))
    source = (
        f"def {rule.name}(param, grad{states}, *, {inputs}step{required}{optional}{scalars}, grad_scale=1.0, "
        f"gradient_noise=None, first_element=0, backend=None, threads=None, **unknown):\n"
        f"    if unknown:\n"
        f"        _refuse(_rule, unknown)\n"
        f"    if {numbers_are_flags}:\n"
        f"        _row_of(_rule, ({', '.join(keys)},))\n"
        f"    _update(_rule, ({taken}), step, ({', '.join(keys)},), grad_scale, {given}, "
        "gradient_noise, first_element, backend, threads)\n"
    )
    namespace: dict[str, Any] = {
        "_update": _update,
        "_refuse": _refuse,
        "_row_of": row_of,
        "_rule": rule,
        "_defaults": defaults,
    }
    exec(compile(source, f"<fastopt.functional.{rule.name}>", "exec"), namespace)
    function = namespace[rule.name]
    function.__module__ = __name__
    *known, _ = inspect.signature(function).parameters.values()
    function.__signature__ = inspect.Signature(known)
    function.__doc__ = function_text(rule)
    return function


__all__ = list(EVERY_RULE)


def __getattr__(name: str) -> Callable[..., None]:
    """Make a function when it is first asked for: to make all takes a quarter of the package's import."""
    if name in EVERY_RULE:
        return globals().setdefault(name, _make(EVERY_RULE[name]))  # of two threads that ask at once, one makes it
    known = ", ".join(__all__)
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}; the rules are {known}{did_you_mean(name, __all__)}"
    )


def __dir__() -> list[str]:
    return sorted(__all__)
