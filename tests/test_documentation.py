"""The text of rules: docstrings of classes and functions, whose examples run, and tables."""

from __future__ import annotations

import doctest
import inspect
import re

import pytest

import fastopt
from fastopt import documentation, functional
from fastopt.rules import RULES

try:
    import torch
except ImportError:
    torch = None

CLASSES = {name: getattr(fastopt, name) for name in dict.fromkeys(rule.optimizer for rule in RULES.values())}
FUNCTIONS = {f"functional.{name}": getattr(functional, name) for name in RULES}
OTHERS = {"Optimizer": fastopt.Optimizer, "Demon": fastopt.Demon}
if torch is not None:
    from fastopt import torch as optim

    CLASSES |= {f"torch.{name}": cls for name, cls in optim.CLASSES.items()}
    OTHERS["torch.Optimizer"] = optim.Optimizer
DOCUMENTED = {**CLASSES, **FUNCTIONS, **OTHERS}


def run_examples(text, name):
    """Run the examples of a docstring and count them; one that prints something else is an error."""
    test = doctest.DocTestParser().get_doctest(text, {"Demon": fastopt.Demon}, name, None, 0)
    output = []
    result = doctest.DocTestRunner().run(test, out=output.append)
    assert not result.failed, "".join(output)
    return result.attempted


@pytest.mark.parametrize("name", DOCUMENTED)
def test_examples_run(name):
    assert run_examples(DOCUMENTED[name].__doc__, name) >= 1


@pytest.mark.parametrize("name", [*CLASSES, *FUNCTIONS])
def test_each_argument_is_documented(name):
    documented = DOCUMENTED[name]
    text = inspect.getdoc(documented)
    parameters = text[text.index("Parameters\n---") : text.index("\nRaises\n---")]
    names = set(re.findall(r"\w+", " ".join(re.findall(r"^\w.*? : |``\w+``", parameters, re.M))))
    assert set(inspect.signature(documented).parameters) <= names
    formulas = {f"    {part}" for rule in RULES.values() for part in rule.formula.split("; ")}
    assert all(
        len(line) <= documentation.WIDTH for line in text.splitlines() if line[:3] != ">>>" and line not in formulas
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_all_functions_share_stands_once(name):
    text = FUNCTIONS[name].__doc__
    assert len(text.splitlines()) <= 70
    once = re.search(r"^more : as every function\n((?: {4}.*\n)+)", text, re.M)[1]
    shared = re.findall(r"``(\w+)``", once)
    assert {"grad_scale", "backend", "threads", "maximize"} <= set(shared)
    for argument in shared:
        assert not re.search(rf"^{argument} : ", text, re.M), argument
        assert re.search(rf"^{argument} : .+\n +\S", functional.__doc__, re.M), argument


@pytest.mark.parametrize("name", CLASSES)
def test_what_all_classes_share_stands_once(name):
    text, shared = CLASSES[name].__doc__, CLASSES[name].__mro__[1]
    assert f"`fastopt.{name.removesuffix(CLASSES[name].__name__)}Optimizer`" in text
    assert "Philox" not in text and "Philox" in fastopt.Optimizer.__doc__
    assert len(text.splitlines()) <= 86
    once = re.search(r"^more : as every class, by keyword\n((?: {4}.*\n)+)", text, re.M)[1]
    of_torch = {"foreach", "fused", "capturable", "differentiable"}
    assert ("weight_decay" in once) != CLASSES[name]._arguments.decoupled and "maximize" in once
    for argument in re.findall(r"``(\w+)``", once):
        assert not re.search(rf"^{argument} : ", text, re.M), argument
        assert re.search(rf"^ {{4}}(\w+, )*{argument}(, \w+)* : .+\n +\S", shared.__doc__, re.M), argument
        if argument not in of_torch:
            assert re.search(rf"^ {{4}}{argument} : .+\n +\S", fastopt.Optimizer.__doc__, re.M), argument
    for attribute in ("state", "param_groups", "last_grad_norm", "last_step_skipped"):
        assert re.search(rf"^ *{attribute} : ", shared.__doc__, re.M)


def public_names(cls):
    return {name for name in dir(cls) if not name.startswith("_")}


def test_each_public_member_is_documented():
    for own, cls in {"Plan": fastopt.Plan, "RowSparse": fastopt.RowSparse, "Rule": fastopt.Rule, **OTHERS}.items():
        inherited = public_names(torch.optim.Optimizer) if own.startswith("torch.") else set()
        for name in public_names(cls) - inherited:
            member = inspect.getattr_static(cls, name)
            described = getattr(member, "__doc__", None) != type(member).__doc__
            assert described or re.search(rf"^ *(\w+, )*{name}(, \w+)* : ", cls.__doc__, re.M), f"{own}.{name}"


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_the_members_of_the_base(name):
    more = {"eval", "train"} if CLASSES[name]._arguments.evaluated else set()
    assert set(public_names(CLASSES[name])) == {*public_names(CLASSES[name].__mro__[1]), *more}


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_says_what_it_does(name):
    cls = CLASSES[name]
    text = " ".join(cls.__doc__.split())
    chosen = documentation.choices(cls._arguments)
    assert set(chosen) == {rule.name for rule in cls._arguments.rules}
    for rule in cls._arguments.rules:
        assert rule.summary in text and all(" ".join(source.split()) in text for source in rule.source.split("; "))
        assert all(part in cls.__doc__ for part in rule.formula.split("; "))
        for referred in re.findall(r"\bas (\w+)", rule.formula):
            assert all(part in cls.__doc__ for part in RULES[referred].formula.split("; "))
    decoupled = cls._arguments.rules[0].decoupled is not None
    assert (", + weight_decay*p" in text) != decoupled
    assert not decoupled or "weight_decay*p" in text


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_the_arguments_that_choose_a_rule_do(name):
    cls = getattr(fastopt, name)
    for rule, given in documentation.choices(cls._arguments).items():
        arguments = eval(f"dict({given})")
        assert cls._arguments.choose({**cls._arguments.defaults, **arguments}) == rule
        assert not given or f"With ``{given}``:" in cls.__doc__


def test_an_example_says_what_a_step_does():
    """The example of a rule would fail if its kernel did something else."""
    text = fastopt.AdamW.__doc__
    assert "[0.899, -1.898]" in text
    with pytest.raises(AssertionError, match=re.escape("[0.899, -1.898]")):
        run_examples(text.replace("[0.899, -1.898]", "[0.9, -1.9]"), "AdamW")


def test_lines_are_wrapped():
    assert documentation.wrapped("a b") == ["a b"]
    long = "word " * 100
    assert " ".join(documentation.wrapped(long, "  ")).split() == long.split()
    assert all(len(line) <= documentation.WIDTH for line in documentation.wrapped(long, "  "))
