"""The base class of peers, and what they share."""

from __future__ import annotations

import importlib
import itertools
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

from ...backends.interrupts import held_back
from ...rules import REQUIRED, RULES, Rule
from ...rules.hyper import count_copies, hyper_row
from ..section import Skip
from ..timing import Call

ELEMENTWISE = tuple(name for name, rule in RULES.items() if rule.elementwise)
#: The rules of whole tensors: those, and the ones that measure tensors first.
DENSE = tuple(name for name, rule in RULES.items() if not rule.by_row)
ALL = ("float32", "float64", "bfloat16", "float16")
WIDE = ALL[:2]  # in fewer bits, whoever computes step by step rounds every intermediate result


class Task(NamedTuple):
    """One step of a rule: the parameter's values at first, which each copies; the gradient, which all read."""

    rule: Rule
    start: np.ndarray
    grad: np.ndarray
    threads: int


@dataclass
class Peer:
    """One step by someone, over arrays of its own.

    Attributes
    ----------
    step : callable
        Does the next step.
    result : callable
        What can be compared with the others': the parameter, and states where they can be seen.
    before : callable, optional
        What a step needs done before it, which is not part of it.
    """

    step: Call
    result: Callable[[], Sequence[np.ndarray]]
    before: Call | None = None


@dataclass(frozen=True)
class Competitor:
    """Someone who can do some rules.

    Attributes
    ----------
    name, label : str
        On the command line and in the results; over a column.
    build : callable
        Makes a `Peer`; raises `Skip`, or whatever its package raises, where that cannot be.
    package : str, optional
        Whose version is to be told.
    rules, dtypes : collection of str
        What it can do.
    temporaries : int
        Arrays of the parameter's size that a step makes beside its own.
    usual : bool
        Whether it takes part unless asked for by name: others take long to get ready.
    """

    name: str
    label: str
    build: Callable[[Task], Peer]
    package: str = ""
    rules: Collection[str] = ELEMENTWISE
    dtypes: Collection[str] = WIDE
    temporaries: int = 0
    usual: bool = True


def installed(package: str) -> bool:
    """Tell whether a distribution is installed."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def load(module: str, install: str) -> Any:
    """A module that may be missing, or broken. It is loaded whole: some would abort the process where a signal came.

    Raises
    ------
    Skip
        Why it cannot be imported, and what to install.
    """
    try:
        with held_back(), held_back(signal.SIGALRM):
            return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise Skip(f"{error}: pip install {install}") from None


def limit_threads(threads: int) -> None:
    """Sets the threads of every OpenMP and BLAS library in the process; ours are told at each call."""
    load("threadpoolctl", "threadpoolctl").threadpool_limits(threads)


def hyper_of(rule: Rule) -> dict[str, Any]:
    """The rule's defaults, with 1e-3 for a required value."""
    return {name: 1e-3 if hyper.default is REQUIRED else hyper.default for name, hyper in rule.hyper.items()}


def count_arrays(rule: Rule) -> int:
    """The arrays of a step: parameter, gradient, states. All are read, all but the gradient are written."""
    return rule.count_arrays(count_copies(rule, hyper_of(rule)))


def count_measured(rule: Rule) -> int:
    """Count the arrays that a stage measures before the update."""
    return 2 + len(rule.measured) if rule.by_tensor else 0


def count_moved(rule: Rule) -> int:
    """Count the arrays that a step reads and writes: all but the gradient twice, and those that a stage measures."""
    return 2 * count_arrays(rule) - 1 + count_measured(rule)


def new_arrays(task: Task) -> list[np.ndarray]:
    """A copy of the parameter, and states as before the first step, every page of them touched."""
    rule, start = task.rule, task.start
    copies = count_copies(rule, hyper_of(rule))
    shapes = [rule.state_shape(name, start.shape, copies) for name in rule.state_names]
    hyper = hyper_of(rule)
    begins = [start if s.name in rule.at_parameter else hyper.get(str(s.begins), 0.0) for s in rule.states]
    return [start.copy(), *(np.full(shape, begin, start.dtype) for shape, begin in zip(shapes, begins, strict=True))]


def coefficients(task: Task) -> tuple[float, Iterator[list[list[float]]]]:
    """Return the factor of the parameter, and step by step the rule's coefficients, for each copy of states."""
    rule = task.rule
    rows = hyper_row(rule, hyper_of(rule))

    def steps() -> Iterator[list[list[float]]]:
        scalars: tuple[float, ...] = tuple(rule.scalars.values())
        for t in itertools.count(1):
            folded = [rule.fold_row(float(t), row, scalars) for row in rows.tolist()]
            scalars = folded[-1][1]
            yield [list(own) for own, _ in folded]

    return rule.fold_prologue(rows[0][0], rows[0], 1.0)[2], steps()
