"""Rule: the one statement of an optimizer in Python, from which everything else is driven."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..checks import as_float, check_flag, check_integer, check_name, wrong_type, wrong_value

#: How many copies of its state a rule may have: C has a loop for each number.
MAX_COPIES = 8
REQUIRED = inspect.Parameter.empty


def parameters_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """List the names of a function's parameters: `inspect.signature` would take a tenth of the package's import."""
    code = function.__code__
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


@dataclass(frozen=True)
class Hyper:
    """A hyper-parameter: its default, what values it takes and what it means.

    Parameters
    ----------
    default : float, bool, tuple or None
        ``REQUIRED`` where the caller must give one.
    low, high : float
        Closed bounds, unless `below_high` opens the upper one.
    meaning : str
        One line for the documentation.
    flag : bool
        True for an option that is on or off.
    vector : bool
        True where there is one value for each copy of the rule's state (AggMo's betas).
    optional : bool
        True where None is a value too; folds see it as NaN.
    infinite : bool
        True where infinity is a value too.
    whole : bool
        True where it is an integer.
    names : tuple of str
        The values, where they are names; folds see the place of one.
    part_of : str, optional
        The argument that classes have in its place, as torch's ``betas``: a tuple of the hyper-parameters that are part
        of it, in the rule's order.
    """

    default: Any
    meaning: str
    low: float = -math.inf
    high: float = math.inf
    below_high: bool = False
    flag: bool = False
    vector: bool = False
    optional: bool = False
    infinite: bool = False
    whole: bool = False
    names: tuple[str, ...] = ()
    part_of: str | None = None

    @property
    def domain(self) -> str:
        """The values allowed, in words for an error message."""
        if self.flag:
            return "True or False"
        if self.names:
            return f"one of {', '.join(self.names)}{' or None' if self.optional else ''}"
        if self.whole:
            return f"an integer >= {self.low:g} and <= {self.high:g}"
        if self.low == POSITIVE and self.high == math.inf:
            words = "a finite number > 0"
        elif self.low > -math.inf and self.high == math.inf:
            words = f"a finite number >= {self.low:g}"
        elif self.low == -math.inf and self.high < math.inf:
            words = f"a finite number <= {self.high:g}"
        elif self.high < math.inf:
            words = f"a number in [{self.low:g}, {self.high:g}{')' if self.below_high else ']'}"
        else:
            words = "a finite number"
        if self.infinite:
            words += ", infinity"
        if self.vector:
            words = "a sequence of one or more values, each " + words
        return words + (" or None" if self.optional else "")

    def check(self, name: str, value: Any) -> float:
        """The value as the number that folds take.

        Raises
        ------
        TypeError
            The value is no number; True and False are none but where it is a flag.
        ValueError
            The number is outside the domain.
        """
        if value is None and self.optional:
            return math.nan
        if self.flag:
            return float(value if type(value) is bool else check_flag(name, value))
        if self.names:
            check_name(name, value, self.names)
            return float(self.names.index(value))
        if self.whole:
            return float(check_integer(name, value, int(self.low), self.high))
        number = value if type(value) is float else as_float(value)
        if number is None:
            raise wrong_type(name, value, self.domain)
        inside = self.low <= number <= self.high and (self.infinite or math.isfinite(number))
        if not inside or (self.below_high and number == self.high):
            raise wrong_value(name, value, self.domain)
        return number


def nonnegative(default: Any, meaning: str) -> Hyper:
    """A finite number >= 0."""
    return Hyper(default, meaning, low=0.0)


def fraction(default: Any, meaning: str, **options: Any) -> Hyper:
    """A number in [0, 1), as a decay rate must be."""
    return Hyper(default, meaning, low=0.0, high=1.0, below_high=True, **options)


def number(default: Any, meaning: str) -> Hyper:
    """Any finite number."""
    return Hyper(default, meaning)


def flag(default: bool, meaning: str) -> Hyper:
    """On or off."""
    return Hyper(default, meaning, flag=True)


POSITIVE = 5e-324  # the lower bound of a number > 0
LR = "learning rate"
EPS = "added to the denominator"
EPS_ROOT = "added under the square root"

# What every rule takes.
COMMON = {
    "weight_decay": nonnegative(0.0, "L2 penalty: added to the gradient, times the parameter"),
    "decoupled_weight_decay": nonnegative(0.0, "decay of the parameter itself, times lr, before the update"),
    "maximize": flag(False, "ascend instead of descend: the gradient's sign is flipped"),
}
#: Where a rule's own hyper-parameters begin in a row of them, after lr.
OWN_HYPER = 3
#: The coefficients of the prologue, which come first in a row of coefficients.
PROLOGUE = ("grad_scale", "weight_decay", "decay")
#: Where a rule's own coefficients begin in a row of them.
OWN = len(PROLOGUE)
#: The gradient's place among a tensor's arrays, behind the parameter.
GRADIENT = 1
#: Where the states begin among a tensor's arrays.
FIRST_STATE = 2
# What C's tables have room for: FASTOPT_MAX_... in csrc/fastopt.in.h.
MAX_HYPER = 24
MAX_COEFFICIENTS = 24
MAX_SCALARS = 4
#: What a stage may measure.
OVER = ("row", "tensor", "all")
#: A state's beginning, in place of a hyper-parameter's name, that is the parameter itself.
AT_PARAMETER = "parameter"


@dataclass(frozen=True)
class State:
    """An array that a rule keeps for each parameter.

    Parameters
    ----------
    name : str
        torch's name for it.
    positive : bool
        True for a state that is never negative (averages, sums and maxima of squares or magnitudes): in 8 bits it needs
        no sign.
    begins : str, optional
        The hyper-parameter that it begins at, or ``"parameter"``; zero if not given. A state that begins at the
        parameter is stored as the parameter is; a copy of it as its master, where it has one.
    single : bool
        True for one number of a whole tensor, of shape ``()`` and in the compute type, which a stage's fold reads and
        writes; with a stage over all tensors it is one number of all. Such states are the last.
    copy_of : str, optional
        The state that it is a copy of, or ``"parameter"``, from when a worker read the parameter: of several workers
        each has its own.
    """

    name: str
    positive: bool = False
    begins: str | None = None
    single: bool = False
    copy_of: str | None = None


@dataclass(frozen=True)
class Stage:
    """A reading pass before the update: sums over a row, a tensor or all tensors, made into further coefficients.

    Parameters
    ----------
    over : str
        ``"row"``, ``"tensor"`` or ``"all"``: every tensor that takes part in the step.
    measure : callable
        ``measure(p, g, *states, *inputs, *folded, *before) -> ((a, b), ...)``, on scalars: the pairs whose products are
        summed, in float64. Of states and inputs it takes those that it reads; `folded` are the coefficients of the
        rule's `fold`, `before` those states of one number that it asks for, as they are before the step, and `g` has
        been through `prologue`. By row it is `squared_gradient`.
    fold : callable
        ``fold(*sums, *singles, *folded) -> (*singles, *further coefficients)``, in float64 and rounded once: states of
        one number, and those coefficients that come last among `update`'s, behind `measure`'s. It divides by nothing
        that can be 0. Over all tensors it is called for each, with the same sums and numbers: those that it returns
        for the first are kept. By row it is ``fold(square, *states, *folded) -> (*states, *update's coefficients)``, in
        the compute type, where `square` is the mean and the states are of rows.
    """

    over: str
    measure: Callable[..., Any]
    fold: Callable[..., Any]


def squared_gradient(p, g):
    """The measure of a stage by row."""
    return ((g, g),)


@dataclass(frozen=True)
class Rule:
    """An optimizer's update, stated once.

    Parameters
    ----------
    name : str
        The rule's name: of its functional form, of its C twin, on the command line.
    optimizer : str
        The name of the class that stands for it.
    summary : str
        What it does, in a line for the documentation.
    formula : str
        The update of one element, in the notation of the documentation.
    source : str
        Paper and reference implementation.
    own : mapping of str to Hyper
        The hyper-parameters that are the rule's own, ``lr`` first, in the order of `fold`'s arguments.
    update : callable
        ``update(p, g, *states, *inputs, *coefficients) -> (p, *states)`` (``p`` alone without states), on scalars,
        written with `fastopt.rules.primitives` only. `g` has been through `prologue`.
    fold : callable
        ``fold(t, *own hyper-parameters[, *scalars]) -> coefficients[, *scalars]``, in float64: everything that does
        not depend on the element.
    states : tuple of State
        State arrays, in the order of `update`'s arguments, which has all but the single ones.
    inputs : tuple of str
        Arrays of the parameter's shape that a step reads beside the gradient, as an older copy of the parameter, in the
        order of `update`'s arguments.
    scalars : mapping of str to float
        Numbers kept for each parameter beside its step, with their initial values.
    decoupled : float, optional
        The default of ``weight_decay`` where that is of the parameter itself, times lr, and there is no other (AdamW).
        It comes before the update, unless `fold` takes it, as the argument before the scalars: then it is the update's.
    notes : tuple of str
        More for the documentation, a paragraph each: other forms, and where torch's or others' differ.
    lacks : mapping of str to str
        Arguments of the reference implementation that there are not here, each with the reason for a message.
    stage : Stage, optional
        What is measured before the update. By row, states are of rows, an element each: there is one, and `update` is
        that of a rule without states and with one coefficient.
    bounded : bool
        True for a rule whose step is finite however large the gradient: the parameter survives an infinite one.
    counted : bool
        False for a rule whose class in torch keeps no count of steps.
    begun : bool
        True for a rule whose class in torch makes the states with the optimizer, and not at the first step.
    ahead : callable, optional
        For a rule whose parameter, where gradients are taken, is not the one to be evaluated: ``ahead(*hyper-parameters
        by their names)`` is the multiple of the first state by which it is ahead of that one.

    Raises
    ------
    ValueError
        Names of arguments do not match, there is more of something than kernels have room for, or what is computed in
        float32 has a constant, which would make float64 of it.
    """

    name: str
    optimizer: str
    summary: str
    formula: str
    source: str
    own: Mapping[str, Hyper]
    update: Callable[..., Any]
    fold: Callable[..., Any]
    states: tuple[State, ...] = ()
    scalars: Mapping[str, float] = field(default_factory=dict)
    decoupled: float | None = None
    notes: tuple[str, ...] = ()
    lacks: Mapping[str, str] = field(default_factory=dict)
    stage: Stage | None = None
    bounded: bool = False
    counted: bool = True
    begun: bool = False
    ahead: Callable[..., float] | None = None
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if next(iter(self.own)) != "lr":
            raise ValueError(f"rule {self.name}: the first hyper-parameter must be lr")
        if self.stage is not None:
            self._check_stage(self.stage)
        before, *arguments = self._arguments
        if tuple(arguments[: len(self.beside)]) != self.beside:
            inputs = f", then the inputs {self.inputs}" if self.inputs else ""
            raise ValueError(
                f"rule {self.name}: the arguments after {before} must be the states {self.elements}{inputs}"
            )
        if self.singles and (self.by_tensor is None or self.state_names != (*self.elements, *self.singles)):
            raise ValueError(
                f"rule {self.name}: found {', '.join(self.singles)} of one number, expected such states last, and a "
                "stage over tensors"
            )
        measure = self.by_tensor.measure if self.by_tensor else None
        for function in filter(None, (self.update, self.by_row, measure)):
            for found in function.__code__.co_consts:
                if isinstance(found, float):  # with float32 Numba's sums and products are float64
                    where = f"found the constant {found} in {function.__name__}"
                    raise ValueError(f"rule {self.name}: {where}, expected a coefficient")
        names = (*self.arrays, *self.own, *self.scalars)
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"rule {self.name}: found {name!r} twice among the names of arguments")
        for state, name in self.begins.items():
            if name not in self.own and name != AT_PARAMETER:
                raise ValueError(f"rule {self.name}: state {state} begins at {name!r}, which is no hyper-parameter")
        for name in parameters_of(self.ahead) if self.ahead else ():
            if name not in self.own or not self.states:
                raise ValueError(f"rule {self.name}: ahead asks for {name!r}, expected hyper-parameters, and a state")
        folded = ("t", *self.folded, *self.scalars)
        if parameters_of(self.fold) != folded:
            raise ValueError(f"rule {self.name}: fold's arguments must be {folded}")
        for what, found, most in (
            ("hyper-parameters", len(self.row), MAX_HYPER),
            ("coefficients, the prologue's included", OWN + len(self.coefficients), MAX_COEFFICIENTS),
            ("scalars", len(self.scalars), MAX_SCALARS),
        ):
            if found > most:
                raise ValueError(f"rule {self.name}: found {found} {what}, expected at most {most}")
        if self.inputs and (self.vector or self.by_row):
            raise ValueError(
                f"rule {self.name}: found inputs beside {self.vector or 'a stage over rows'}, expected one of the two"
            )
        if self.by_row and (len(self.states), len(parameters_of(self.update))) != (1, 3):
            raise ValueError(
                f"rule {self.name}: a rule by row has one state, and an update of p, g and one coefficient"
            )

    def _check_stage(self, stage: Stage) -> None:
        """Check what a stage measures and makes of it."""
        if self.vector:
            raise ValueError(f"rule {self.name}: a rule with a stage has no {self.vector} of several values")
        if stage.over not in OVER:
            raise ValueError(f"rule {self.name}: found a stage over {stage.over!r}, expected one of {', '.join(OVER)}")
        if stage.over == "row":
            if stage.measure is not squared_gradient:
                raise ValueError(f"rule {self.name}: a stage over rows measures squared_gradient")
            return
        known, asked = self._arguments, parameters_of(stage.measure)
        own = self.coefficients[: len(self.folds) + len(self.read_before)]
        if asked != ("p", "g", *self.measured, *own) or known[0] != "g":
            raise ValueError(
                f"rule {self.name}: measure's arguments must be p, g, states, inputs, and update's coefficients"
            )
        expected = (*self.singles, *self.folds)
        if not self.sums or parameters_of(stage.fold)[len(self.sums) :] != expected:
            raise ValueError(f"rule {self.name}: the arguments of the stage's fold must be sums, then {expected}")

    @cached_property
    def state_names(self) -> tuple[str, ...]:
        """The state arrays' names, in the order of the functional form's arguments."""
        return tuple(state.name for state in self.states)

    @cached_property
    def singles(self) -> tuple[str, ...]:
        """Names of the states that are one number."""
        return tuple(state.name for state in self.states if state.single)

    @cached_property
    def elements(self) -> tuple[str, ...]:
        """Names of the states that `update` takes: those of each element, or row."""
        return tuple(state.name for state in self.states if not state.single)

    @cached_property
    def beside(self) -> tuple[str, ...]:
        """Names of the arrays that `update` takes beside parameter and gradient: states, then inputs."""
        return self.elements + self.inputs

    @cached_property
    def arrays(self) -> tuple[str, ...]:
        """Names of all arrays beside parameter and gradient, in the order of tables: single states come last."""
        return self.beside + self.singles

    @cached_property
    def begins(self) -> dict[str, str]:
        """The hyper-parameter that a state begins at, for each that begins neither at zero nor at the parameter."""
        return {state.name: state.begins for state in self.states if state.begins not in (None, AT_PARAMETER)}

    @cached_property
    def at_parameter(self) -> frozenset[str]:
        """The states that begin at the parameter, and are stored as it is."""
        return frozenset(state.name for state in self.states if state.begins == AT_PARAMETER)

    @cached_property
    def copies_of_parameter(self) -> frozenset[str]:
        """The states that are the parameter as a worker read it."""
        return frozenset(state.name for state in self.states if state.copy_of == AT_PARAMETER)

    @cached_property
    def initial(self) -> frozenset[str]:
        """The hyper-parameters that only say how states begin."""
        return frozenset(self.begins.values()).difference(parameters_of(self.fold))

    @property
    def kernel(self) -> str:
        """The name of the compiled kernel: rules that differ in defaults only share one."""
        return (self.by_row or self.update).__name__

    @property
    def _arguments(self) -> tuple[str, ...]:
        """Names of the update's arguments: gradient, states, inputs, coefficients."""
        names = parameters_of(self.by_row or self.update)
        return names if self.by_row else names[1:]

    @cached_property
    def coefficients(self) -> tuple[str, ...]:
        """Names of the numbers that `update` takes, or the fold of a stage over rows."""
        return self._arguments[1 + len(self.beside) :]

    @property
    def by_row(self) -> Callable[..., Any] | None:
        """The fold of a stage over rows."""
        return self.stage.fold if self.stage is not None and self.stage.over == "row" else None

    @property
    def elementwise(self) -> bool:
        """Tell whether each element is updated by its own gradient and states alone."""
        return self.stage is None

    @property
    def by_tensor(self) -> Stage | None:
        """The stage, where it measures whole tensors, each or all."""
        return None if self.by_row else self.stage

    @cached_property
    def over_all(self) -> bool:
        """Tell whether the stage measures all tensors together, whose states of one number are the same."""
        return self.stage is not None and self.stage.over == "all"

    @property
    def whole(self) -> str:
        """Say why a parameter is updated as a whole; "" where its rows and shards can be."""
        return f"{self.optimizer} measures whole tensors" if self.by_tensor else ""

    def check_shape(self, shape: tuple[int, ...], name: str) -> None:
        """Check that a parameter may have this shape: here any."""

    def states_of(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Names of the states that a parameter of that shape has, but for those of one number: here of any."""
        return self.elements

    @cached_property
    def folds(self) -> tuple[str, ...]:
        """Names of the coefficients that `fold` makes: all but those of a stage over tensors, which come last."""
        if self.by_tensor is None:
            return self.coefficients
        asked = parameters_of(self.by_tensor.measure)[FIRST_STATE + len(self.measured) :]
        return asked[: len(asked) - len(self.read_before)]

    @cached_property
    def read_before(self) -> tuple[str, ...]:
        """Names of the states of one number that `measure` takes, as coefficients behind `folds`."""
        asked = parameters_of(self.by_tensor.measure) if self.by_tensor else ()
        return tuple(name for name in asked if name in self.singles)

    @cached_property
    def read_at(self) -> tuple[int, ...]:
        """The places of those among the states of one number."""
        return tuple(map(self.singles.index, self.read_before))

    @cached_property
    def measured(self) -> tuple[str, ...]:
        """Names of the states and inputs that a stage over tensors reads."""
        asked = parameters_of(self.by_tensor.measure) if self.by_tensor else ()
        return tuple(name for name in self.beside if name in asked)

    @cached_property
    def sums(self) -> tuple[str, ...]:
        """Names of the sums that a stage over tensors measures."""
        if self.by_tensor is None:
            return ()
        names = parameters_of(self.by_tensor.fold)
        return names[: len(names) - len(self.singles) - len(self.folds)]

    @cached_property
    def vector(self) -> str | None:
        """The hyper-parameter that has one value for each copy of the state, if the rule has such copies."""
        return next((name for name, hyper in self.own.items() if hyper.vector), None)

    @cached_property
    def folded(self) -> tuple[str, ...]:
        """`fold`'s arguments between ``t`` and the scalars; those that only say how a state begins are left out."""
        names = [name for name in self.own if name not in self.initial]
        decay = ["weight_decay"] if self.decays_inside else []
        return (*names, *(["copies"] if self.vector else []), *decay)

    @cached_property
    def decays_inside(self) -> bool:
        """True for a rule whose weight_decay is the update's, and none comes before."""
        return self.decoupled is not None and "weight_decay" in parameters_of(self.fold)

    @cached_property
    def common(self) -> dict[str, Hyper]:
        """The hyper-parameters that are not the rule's own."""
        if self.decoupled is None:
            return COMMON
        decay = nonnegative(self.decoupled, COMMON["decoupled_weight_decay"].meaning)
        return {"weight_decay": decay, "maximize": COMMON["maximize"]}

    @cached_property
    def parts(self) -> dict[str, tuple[str, int]]:
        """For each hyper-parameter that is part of a class's argument, the argument and the place in it."""
        found: dict[str, tuple[str, int]] = {}
        for name, hyper in self.own.items():
            if hyper.part_of is not None:
                found[name] = hyper.part_of, sum(whole == hyper.part_of for whole, _ in found.values())
        return found

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The number of hyper-parameters that are part of each such argument."""
        return {whole: place + 1 for whole, place in self.parts.values()}

    @cached_property
    def row(self) -> tuple[str, ...]:
        """The layout of a row of hyper-parameters, as backends take it: what not all rules have comes last."""
        last = [name for name in COMMON if name not in ("weight_decay", "maximize") and name in self.common]
        own = [name for name in self.folded[1:] if name != "weight_decay"]
        return ("lr", "weight_decay", "maximize", *own, *last)

    @cached_property
    def folded_at(self) -> tuple[int, ...]:
        """The places in a row of hyper-parameters of `fold`'s arguments between ``t`` and the scalars."""
        return tuple(map(self.row.index, self.folded))

    @cached_property
    def hyper(self) -> dict[str, Hyper]:
        """Every hyper-parameter, in the order of the functional form."""
        return {**self.own, **self.common}

    def defaults(self) -> dict[str, Any]:
        """Hyper-parameters' defaults, without those that the caller must give."""
        return {name: hyper.default for name, hyper in self.hyper.items() if hyper.default is not REQUIRED}

    @cached_property
    def positive(self) -> frozenset[str]:
        """The states that are never negative."""
        return frozenset(state.name for state in self.states if state.positive)

    def count_arrays(self, copies: int) -> int:
        """The number of a tensor's arrays that have all elements, or rows, without those that storage adds: parameter,
        gradient, states, inputs.
        """
        return FIRST_STATE + copies * len(self.elements) + len(self.inputs)

    def state_shape(self, name: str, shape: tuple[int, ...], copies: int) -> tuple[int, ...]:
        """The shape of a state of a parameter of that shape; one that storage adds has the parameter's."""
        if name in self.singles:
            return ()
        if name not in self.elements:
            return tuple(shape)
        if self.vector:
            return (copies, *shape)
        return tuple(shape[:1]) if self.by_row else tuple(shape)

    def fold_row(self, t: float, row: Sequence[float], scalars: Sequence[float] = ()) -> tuple[tuple, tuple]:
        """The coefficients of step t and the scalars after it, from a row of hyper-parameters."""
        found = self.fold(t, *map(row.__getitem__, self.folded_at), *scalars)
        count = len(self.folds)
        return (*found[:count], *(0.0,) * (len(self.coefficients) - count)), found[count:]

    @property
    def fold_prologue(self) -> Callable[..., tuple[float, float, float]]:
        """``fold_prologue(lr, row, grad_scale)``: the coefficients of the prologue, from a row of hyper-parameters."""
        if self.decays_inside:
            return fold_no_decay
        return fold_both_decays if self.decoupled is None else fold_decoupled_decay

    def variant(self, name: str, optimizer: str, **changes: Any) -> Rule:
        """Return the rule under another name, with other defaults."""
        return replace(self, name=name, optimizer=optimizer, **changes)


def fold_both_decays(lr, row, grad_scale):
    """The coefficients of the prologue."""
    return (-grad_scale if row[2] else grad_scale), row[1], (1.0 - lr * row[-1] if row[-1] else 1.0)


def fold_decoupled_decay(lr, row, grad_scale):
    """Fold the prologue of a rule whose ``weight_decay`` is decoupled."""
    return (-grad_scale if row[2] else grad_scale), 0.0, (1.0 - lr * row[1] if row[1] else 1.0)


def fold_no_decay(lr, row, grad_scale):
    """Fold the prologue of a rule whose ``weight_decay`` is the update's."""
    return (-grad_scale if row[2] else grad_scale), 0.0, 1.0


def prologue(p, g, grad_scale, weight_decay, decay):
    """The prologue of every rule: scale, L2 decay, decoupled decay."""
    g = grad_scale * g
    decayed = g + weight_decay * p
    # A decay of 0 is none: 0*p would make NaN of an infinite parameter.
    return p * decay, (g if weight_decay == 0 else decayed)
