"""Rules of nobody's, which stand for those that users may want: `registered` puts one in the table for a test.

`TOY` has more of everything than those of the table: four states, two kept scalars, two inputs. `MEASURED` has a stage
that measures an input. Their C twins are in ``c/toy.h``.
"""

import importlib
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fastopt
from fastopt import documentation, functional, optimizers, rules
from fastopt.binding import options
from fastopt.rules import Hyper, Rule, Stage, State
from fastopt.rules.primitives import maximum, sqrt, where

HYPER = {"lr": 0.05, "beta": 0.8, "power": 0.5}
START = 0.25


def toy(p, g, average, largest, total, side, old, drift, rate, mix, mix_c, weight, pull):
    ahead = g + weight * (p - old)
    average = mix * average + mix_c * ahead
    largest = maximum(largest, ahead * ahead)
    total = total + ahead * drift
    side = where(old > p, side - pull, side + pull * drift)
    p = p - rate * (average / (sqrt(largest) + pull) + weight * (total - side))
    return p, average, largest, total, side


def fold_toy(t, lr, beta, power, shrunk, steps):
    shrunk = shrunk * beta
    steps = steps + lr
    return lr * (1.0 - shrunk), beta, 1.0 - beta, shrunk, power / (1.0 + steps), shrunk, steps


TOY = Rule(
    "toy", "Toy", "A rule of four states, two scalars and two inputs", "p = toy(p)", "nobody",
    {"lr": Hyper(0.1, "learning rate", low=0.0), "beta": Hyper(0.9, "decay rate"), "power": Hyper(0.5, "strength"),
     "start": Hyper(0.25, "where side begins")},
    toy, fold_toy,
    (State("average"), State("largest", positive=True), State("total"), State("side", begins="start")),
    scalars={"shrunk": 1.0, "steps": 0.0}, inputs=("old", "drift"),
)  # fmt: skip


def toy_measured(p, g, m, old, mix, rate):
    m = mix * m + (g + (p - old))
    return p - rate * m, m


def measure_toy(p, g, old, mix):
    return (p - old, p - old), (g, mix * g)


def fold_toy_measured(t, lr, beta):
    return (beta,)


def complete_toy(moved, square, mix):
    return (mix / (1.0 + sqrt(moved) + sqrt(square)),)


MEASURED = Rule(
    "toy_measured", "ToyMeasured", "A rule whose stage measures an input", "p = toy(p)", "nobody",
    {"lr": Hyper(0.1, "learning rate", low=0.0), "beta": Hyper(0.75, "decay rate", low=0.0)},
    toy_measured, fold_toy_measured, (State("m"),), stage=Stage("tensor", measure_toy, complete_toy), inputs=("old",),
)  # fmt: skip


def oracle(p, grads, inputs, lr, beta, power, start, dtype=np.longdouble):
    """Parameter and states after steps, element by element of the formula, in another order of operations."""
    p = p.astype(dtype)
    average, largest, total, side = (np.zeros_like(p) for _ in range(4))
    side += dtype(start)
    for t, (g, old, drift) in enumerate(zip(grads, *inputs, strict=True), 1):
        g, old, drift = (x.astype(dtype) for x in (g, old, drift))
        shrunk = dtype(beta) ** t
        pull = dtype(power) / (1 + t * dtype(lr))
        ahead = g + shrunk * (p - old)
        average = average + (1 - dtype(beta)) * (ahead - average)
        largest = np.where(ahead**2 > largest, ahead**2, largest)
        total = total + ahead * drift
        side = side + np.where(old > p, -pull, pull * drift)
        p = p - dtype(lr) * (1 - shrunk) * (average / (np.sqrt(largest) + pull) + shrunk * (total - side))
    return [p, average, largest, total, side]


@contextmanager
def registered(rule=TOY):
    """The rule's functional form and class, while the rule is in the table."""
    every = {**rules.EVERY_RULE, rule.name: rule}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "RULES", {**rules.RULES, rule.name: rule})
        patch.setattr(options, "EVERY_RULE", every)
        patch.setattr(documentation, "EVERY_RULE", every)
        patch.setitem(vars(functional), rule.name, function := functional._make(rule))
        yield function, optimizers._define(options._arguments(rule.optimizer))


def build_library(folder):
    """The C library with these rules only, from a copy of its sources whose rules are those of ``c/toy.h``."""
    root = Path(__file__).parents[1]
    csrc, objects = Path(shutil.copytree(root / "csrc", folder / "csrc")), folder / "objects"
    objects.mkdir()
    shared, _, _ = (csrc / "rules.h").read_text().partition("/* ---- sgd ---- */")
    (csrc / "rules.h").write_text(shared + (root / "tests/c/toy.h").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(csrc)
        for name in ("generate", "library"):
            patch.delitem(sys.modules, name, raising=False)  # others' is back afterwards
        generate, library = map(importlib.import_module, ("generate", "library"))
        for name in ("generate", "library"):
            del sys.modules[name]
    module = SimpleNamespace(**{**vars(rules), "RULES": {rule.name: rule for rule in (TOY, MEASURED)}})
    (objects / "rule_table.h").write_text(generate.rule_table(module, library.levels()))
    include = [objects, fastopt.get_include()]
    flags = [*library.FLAGS, "-Werror"]
    made = library.compile_all(["gcc"], flags, library.levels(), include, objects)
    name = library.file_name(fastopt.__version__)
    link = ["gcc", "-shared", *made, "-lm", f"-Wl,-soname,{name}", "-o", folder / name]
    subprocess.run(link, check=True)
    return folder / name
