"""Internal. Text about rules, all from the rule table: docstrings, tables, the C header's comments.

It imports the rules only, so that the build can make the C header before the package is there.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .rules import COMMON, EVERY_RULE, REQUIRED, RULES, FactoredRule, Hyper, MatrixRule, Rule, prologue

if TYPE_CHECKING:
    from .binding.options import Arguments

WIDTH = 96  # of docstrings, which pydoc indents further
START = [1.0, -2.0]  # the parameter of the examples
GRADIENT = [2 * p for p in START]  # of the sum of its squares

_INVALID = ("TypeError, ValueError", "    An argument is not what it must be; the message names it.")


def wrapped(text: str, indent: str = "") -> list[str]:
    """A docstring's lines. (textwrap takes ten times as long, and docstrings are made at import.)"""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > WIDTH:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else indent + word
    return [*lines, line]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _section(title: str, lines: Iterable[str]) -> list[str]:
    return ["", title, "-" * len(title), *lines]


def _entry(names: str, kind: str, text: str) -> list[str]:
    """A parameter's lines."""
    return [f"{names} : {kind}", *wrapped(text, "    ")]


# ---- one rule ----


def _assignments(rule: Rule) -> list[str]:
    """The update of an element, an assignment a line."""
    return [f"    {line}" for line in rule.formula.split("; ")]


def _formulas(rule: Rule, told: set[str]) -> list[str]:
    """Render the update of an element, and those of the rules that it refers to and that are not `told` yet."""
    told.add(rule.name)
    lines = ["", *_assignments(rule)]
    for name in re.findall(r"\bas (\w+)", rule.formula):
        if name not in told:
            lines += ["", f"and {name} is::", *_formulas(RULES[name], told)]
    return lines


def _notes(rules: list[Rule]) -> list[str]:
    """Render the notes on other forms, and the sources."""
    lines: list[str] = []
    for note in dict.fromkeys(note for rule in rules for note in rule.notes):
        lines += ["", *wrapped(note)]
    sources = dict.fromkeys(source for rule in rules for source in rule.source.split("; "))
    return [*lines, "", *wrapped(f"Source: {'; '.join(sources)}.")]


def _shape(rule: Rule) -> str:
    """Render the shape of the states where it is not the parameter's."""
    if rule.singles:
        return f" ({', '.join(rule.singles)} of shape ``()``)"
    if isinstance(rule, FactoredRule):
        *factors, every = rule.state_names
        of_more = f"{' and '.join(factors)}, of size 1 in the last, the last but one"
        return f" ({every} of one dimension or none; of more {of_more})"
    return (
        " (an element a row)" if rule.by_row else f" (of shape (number of {rule.vector}, ...))" if rule.vector else ""
    )


def _states(rule: Rule) -> str:
    """List the state arrays."""
    return ", ".join(f"``{name}``" for name in rule.state_names) + _shape(rule) if rule.states else "none"


def _kind(hypers: list[Hyper], default: Any, schedules: bool) -> str:
    """The type of an argument, in numpydoc's words, with its default."""
    words = "bool" if hypers[0].flag else "str" if hypers[0].names else "int" if hypers[0].whole else "float"
    words += " or callable" if schedules and words in ("int", "float") else ""
    words = (
        f"{'pair' if len(hypers) == 2 else 'tuple'} of {words}"
        if len(hypers) > 1
        else f"sequence of {words}"
        if hypers[0].vector
        else words
    )
    words += " or None" if hypers[0].optional else ""
    return words if default is REQUIRED else f"{words}, default {default!r}"


def _meaning(hypers: list[Hyper]) -> str:
    """Render the meaning of an argument, and the values that it takes."""
    words = _sentence("; ".join(dict.fromkeys(hyper.meaning for hyper in hypers)))
    if hypers[0].flag or hypers[0].domain == "a finite number":
        return words
    domain = hypers[0].domain.removeprefix("a sequence of one or more values, ").removesuffix(" or None")
    return f"{words} {_sentence(f'each {domain}' if len(hypers) > 1 else domain)}"


def _beginnings(rule: Rule, values: Mapping[str, float], p: float) -> list[float]:
    """The numbers that states of an element begin at."""
    return [p if s.name in rule.at_parameter else values[s.begins] if s.begins else 0.0 for s in rule.states]


def _completed(
    rule: Rule, row: list[float], states: list[list[float]], coefficients: tuple[float, ...]
) -> tuple[float, ...]:
    """Complete the coefficients of the examples' first step by what the rule's stage measures."""
    if rule.by_tensor is None:
        return coefficients
    folded, before = coefficients[: len(rule.folds)], rule.fold_prologue(row[0], row, 1.0)
    count = len(rule.elements)
    singles, named = states[0][count:], dict.fromkeys(rule.inputs, 0.0)
    kept = [singles[k] for k in rule.read_at]
    pairs = []
    for p, g, own in zip(START, GRADIENT, states, strict=True):
        named.update(zip(rule.elements, own, strict=False))
        read = [named[name] for name in rule.measured]
        pairs.append(rule.by_tensor.measure(*prologue(p, g, *before), *read, *folded, *kept))
    sums = [sum(a * b for a, b in products) for products in zip(*pairs, strict=True)]
    return (*folded, *kept, *rule.by_tensor.fold(*sums, *singles, *folded)[len(singles) :])


def _after_a_matrix_step(rule: MatrixRule, values: Mapping[str, Any]) -> str:
    """Compute the examples' parameter, a matrix of one row, after the rule's first step, to a digit, as in bfloat16."""
    row = [rule.hyper[name].check(name, values[name]) for name in rule.row]
    ends, norm = rule.ends((1, len(START)), 1, row), math.hypot(*GRADIENT)
    a, b, c, _, steps = ends.middle
    size = 1.0  # the only singular value
    for _ in range(int(steps)):
        size = a * size + b * size**3 + c * size**5
    lr, decay = ends.last["lr"], ends.last["decoupled_weight_decay"]
    return str([[round(p - lr * decay * p - lr * size * g / norm, 1) for p, g in zip(START, GRADIENT, strict=True)]])


def _after_an_averaged_step(rule: FactoredRule, values: Mapping[str, Any]) -> str:
    """Compute the examples' parameter after the rule's first step, whose update is the gradient's sign."""
    row = [rule.hyper[name].check(name, values[name]) for name in rule.row]
    _, _, eps2, _, rate, scaled = rule.ends((len(START),), 1, row).middle
    size = max(eps2, math.hypot(*START) / math.sqrt(len(START))) if scaled else 1.0
    return str([round(p - rate * size * math.copysign(1.0, g), 6) for p, g in zip(START, GRADIENT, strict=True)])


def _after_a_step(rule: Rule, values: Mapping[str, Any]) -> str:
    """Compute the examples' parameter after the rule's first step."""
    if isinstance(rule, MatrixRule):
        return _after_a_matrix_step(rule, values)
    if isinstance(rule, FactoredRule):
        return _after_an_averaged_step(rule, values)
    single = {name: hyper.check(name, values[name]) for name, hyper in rule.hyper.items() if not hyper.vector}
    vector = values[rule.vector] if rule.vector else (0.0,)
    every = [_beginnings(rule, single, p) for p in START]
    found = []
    for p, g, states in zip(START, GRADIENT, every, strict=True):
        for k, value in enumerate(vector):
            own = {**single, "copies": len(vector), str(rule.vector): value}
            row = [own[name] for name in rule.row]
            coefficients, _ = rule.fold_row(1.0, row, tuple(rule.scalars.values()))
            if k == 0:
                p, g = prologue(p, g, *rule.fold_prologue(row[0], row, 1.0))
            coefficients = _completed(rule, row, every, coefficients)
            if rule.by_row:
                p = rule.update(p, g, *rule.by_row(g * g, *states, *coefficients)[len(states) :])
            else:
                after = rule.update(p, g, *states[: len(rule.elements)], *(0.0 for _ in rule.inputs), *coefficients)
                p = after[0] if rule.elements else after
        found.append(round(p, 6))
    return str(found)


# ---- classes ----


def _states_of(rules: list[Rule], given: list[str]) -> str:
    """List the state arrays of a class: the first rule's, and those of others with the arguments that choose them."""
    texts = {_states(rules[0]): [""]}
    for rule, chosen in zip(rules[1:], given[1:], strict=True):
        texts.setdefault(_states(rule), []).append(f" with ``{chosen}``")
    found = [states + " or".join(chosen) for states, chosen in texts.items() if states != "none"]
    return "; ".join(found) or "none"


def choices(arguments: Arguments) -> dict[str, str]:
    """The rules that a class stands for, the default first, with the arguments that choose them."""
    return {
        rule: ", ".join(f"{name}={value!r}" for name, value in chosen.items())
        for rule, chosen in arguments.choices.items()
    }


def _class(
    arguments: Arguments, before: str, parameters: Iterable[str], raised: Iterable[str], example: Iterable[str]
) -> str:
    """The docstring of a class."""
    chosen = choices(arguments)
    rules = [EVERY_RULE[name] for name in chosen]
    lines, told = [], set[str]()
    for rule, given in zip(rules, chosen.values(), strict=True):
        summary = _sentence(rule.summary)
        lines += ["", *wrapped(f"With ``{given}``: {summary[:-1]}::")] if given else [*wrapped(summary), "", "::"]
        lines += _formulas(rule, told)
    lines += ["", *wrapped(before), *_notes(rules)]
    lines += _section("Parameters", parameters)
    counters = dict.fromkeys(["step", *(scalar for rule in rules for scalar in rule.scalars)])
    text = f"{', '.join(f'``{name}``' for name in counters)}, and arrays: {_states_of(rules, list(chosen.values()))}."
    lines += _section("Attributes", _entry("state", "sequence of mappings, one for each parameter", text))
    lines += _section("Raises", (*_INVALID, *raised))
    lines += _section("Examples", example)
    return "\n".join(lines)


def _hypers(arguments: Arguments, defaults: Mapping[str, Any], schedules: bool) -> Iterator[str]:
    """The lines of a class's hyper-parameters."""
    hypers = arguments.hypers()
    for name, default in defaults.items():
        own = hypers[name]
        yield from _entry(name, _kind(own, default, schedules), _meaning(own))


def _common(arguments: Arguments, names: Iterable[str]) -> list[str]:
    """List those arguments that a class has as every other; the one decay of AdamW or Lion is its own."""
    own = ("weight_decay",) if arguments.decoupled else ()
    return [name for name in COMMON if name in names and name not in own]


def _shared(names: Iterable[str], where: str) -> list[str]:
    """Render the entry for the arguments that all classes have, which are documented once."""
    text = f"{', '.join(f'``{name}``' for name in names)}: see `{where}`, which has the methods too."
    return _entry("more", "as every class, by keyword", text)


def _start(rule: Rule) -> tuple[Any, int]:
    """Return the parameter of a class's example, and the digits that it shows."""
    return ([START], 1) if isinstance(rule, MatrixRule) else (START, 6)


def _example(arguments: Arguments, defaults: Mapping[str, Any]) -> str:
    """Compute the parameter after the first step of a class."""
    group = {**arguments.defaults, **defaults, "lr": 0.1}
    rule = EVERY_RULE[arguments.choose(group)]
    return _after_a_step(rule, arguments.values(rule, group, 1))


def class_text(arguments: Arguments, shared: Iterable[str]) -> str:
    """The docstring of a class for arrays.

    Parameters
    ----------
    arguments : Arguments
        The class's.
    shared : iterable of str
        The other arguments, which `fastopt.Optimizer` documents.
    """
    before = "Here g is grad_scale*grad, its sign flipped by ``maximize``"
    if arguments.decoupled:
        before += "."
    else:
        before += ", + weight_decay*p; then p *= 1 - lr*decoupled_weight_decay; then comes the above."
    if arguments.inputs:
        before += f" {_inputs(arguments.inputs)}, given to ``step`` and ``bind`` as ``inputs``, by these names."
    common = _common(arguments, arguments.defaults)
    parameters = [
        *_entry(
            "params",
            "array, nested sequences and mappings, or list of group dicts",
            "Arrays that are updated in place.",
        ),
        *_hypers(arguments, {k: v for k, v in arguments.defaults.items() if k not in common}, schedules=True),
        *_shared([*common, *shared], "fastopt.Optimizer"),
    ]
    start, digits = _start(arguments.rules[0])
    example = [
        ">>> import numpy as np, fastopt",
        f">>> p = np.array({start})",
        f">>> opt = fastopt.{arguments.name}(p, lr=0.1)",
        f">>> opt.step(2 * p{_given(arguments.inputs)})  # the gradient of the sum of p**2",
        f">>> p.round({digits}).tolist()",
        _example(arguments, {}),
    ]
    return _class(arguments, before, parameters, (), example)


def _inputs(names: Iterable[str]) -> str:
    """Say what inputs are."""
    return f"{', '.join(f'``{name}``' for name in names)}: arrays of the parameter's shape, which are read only"


def _given(names: tuple[str, ...]) -> str:
    """Render the inputs of a step in an example."""
    values = ", ".join(f'"{name}": np.zeros({len(START)})' for name in names)
    return f", inputs={{{values}}}" if names else ""


def torch_text(arguments: Arguments, defaults: Mapping[str, Any], shared: Iterable[str]) -> str:
    """The docstring of a class for torch.

    Parameters
    ----------
    arguments : Arguments
        The class's.
    defaults : mapping
        The arguments of its own after ``params``, in their order.
    shared : iterable of str
        The other arguments, which `fastopt.torch.Optimizer` documents.
    """
    before = "Here g is the gradient, its sign flipped by ``maximize``"
    if arguments.decoupled:
        before += "."
    else:
        before += (
            ", + weight_decay*p. With ``decoupled_weight_decay=True`` it is the gradient alone, and p *= 1 - "
            "lr*weight_decay comes before the above."
        )
    kind = "iterable of tensors, of (name, tensor) pairs, or of group dicts"
    parameters = _entry("params", kind, "Tensors that are updated in place.")
    common = _common(arguments, defaults)
    parameters += _hypers(arguments, {k: v for k, v in defaults.items() if k not in common}, schedules=False)
    raised = ("BackendUnavailable", "    A tensor is on a device for which there is no backend.")
    start, _ = _start(arguments.rules[0])
    shown = "[round(x, 6) for x in p.tolist()]" if start is START else "p.detach().numpy().round(1).tolist()"
    example = [
        ">>> import torch",
        ">>> from fastopt import torch as optim",
        f">>> p = torch.tensor({start}, dtype=torch.float64, requires_grad=True)",
        f">>> opt = optim.{arguments.name}([p], lr=0.1)",
        ">>> p.square().sum().backward()",
        ">>> opt.step()",
        f">>> {shown}",
        _example(arguments, defaults),
    ]
    return _class(
        arguments, before, [*parameters, *_shared([*common, *shared], "fastopt.torch.Optimizer")], raised, example
    )


# ---- functions ----

_CALL = ("grad_scale", "gradient_noise", "first_element", "backend", "threads")


def function_text(rule: Rule) -> str:
    """The docstring of a rule's functional form."""
    lines = [f"One step of {rule.name}, in place.", "", *wrapped(_sentence(rule.summary)), "", "::"]
    lines += _formulas(rule, set())
    decays = ", + weight_decay*p; then p *= 1 - lr*decoupled_weight_decay; then comes the above"
    decays = decays if rule.decoupled is None else ""
    lines += ["", *wrapped(f"Here g is grad_scale*grad, its sign flipped by ``maximize``{decays}."), *_notes([rule])]
    parameters = _entry("param, grad", "array, or list of arrays", "The parameter, which is updated, and its gradient.")
    if rule.states:
        begins = [f", {state} at the class's {name}" for state, name in rule.begins.items()]
        begins += [f", {state} at the parameter" for state in rule.state_names if state in rule.at_parameter]
        text = f"States, which are updated too{_shape(rule)}. They begin at zero{''.join(begins)}."
        parameters += _entry(", ".join(rule.state_names), "array, or list of arrays", text)
    if rule.inputs:
        text = "Arrays of the parameter's shape, which are read only."
        parameters += _entry(", ".join(rule.inputs), "array, or list of arrays", text)
    parameters += _entry("step", "int", "The 1-based number of this step.")
    for name, hyper in rule.hyper.items():
        if name not in rule.initial and hyper is not COMMON.get(name):
            parameters += _entry(name, _kind([hyper], hyper.default, schedules=False), _meaning([hyper]))
    for name in rule.scalars:
        text = "Its value before this step; by default that of constant hyper-parameters."
        parameters += _entry(name, "float, optional", text)
    common = [name for name, hyper in COMMON.items() if rule.hyper.get(name) is hyper]
    names = ", ".join(f"``{name}``" for name in (*common, *_CALL))
    parameters += _entry("more", "as every function", f"{names}: see `fastopt.functional`.")
    lines += _section("Parameters", parameters)
    lines += _section("Raises", (*_INVALID[:1], _INVALID[1][:-1] + ", and nothing is written."))
    given = {**rule.defaults(), "lr": 0.1}
    start, digits = _start(rule)
    shape: Any = f"({len(given[rule.vector])}, {len(START)})" if rule.vector else len(START)
    shape = f"(1, {shape})" if start is not START else shape
    factored = isinstance(rule, FactoredRule)
    states = [state for state in rule.states if not factored or state.name in rule.states_of((len(start),))]
    called = ", ".join(("p", *(state.name for state in states)))
    taken = "".join(f", {state.name}={state.name}" if factored else f", {state.name}" for state in states)
    begin = [
        f"np.array({start})"
        if state.name in rule.at_parameter
        else f"np.full({() if state.single else shape}, {given[str(state.begins)]})"
        if given.get(str(state.begins))
        else f"np.zeros({() if state.single else shape})"
        for state in states
    ]
    values = ", ".join((f"np.array({start})", *begin))
    read = "".join(f"{name}=np.zeros({len(start)}), " for name in rule.inputs)
    example = [
        ">>> import numpy as np, fastopt",
        f">>> {called} = {values}",
        f">>> fastopt.functional.{rule.name}(p, 2 * p{taken}, {read}step=1, lr=0.1)",
        f">>> p.round({digits}).tolist()",
        _after_a_step(rule, given),
    ]
    return "\n".join((*lines, *_section("Examples", example)))


def numba_text(rule: Rule, name: str) -> str:
    """The docstring of one of a rule's functions for Numba kernels: fold, update, by_row or prologue."""
    return "\n".join(_NUMBA[name](rule))


def _numba_fold(rule: Rule) -> list[str]:
    after = "".join(f", and {scalar} after the step" for scalar in rule.scalars)
    of_one = "How many copies of its states the rule has; this folds for one of them."
    text = (
        "Of `real`; outside kernels, of Python's floats. Nothing is checked: a value out of range gives what the "
        "formula makes of it."
    )
    parameters = [
        *_entry("real", "type", "``np.float32`` or ``np.float64``: what the arrays hold."),
        *_entry("t", "int", "The 1-based step."),
        *(_entry("copies", "int", of_one) if rule.vector else []),
        *_entry("lr, ...", "float or bool", f"As of `fastopt.functional.{rule.name}`; NaN stands for None."),
        *_entry("grad_scale", "float, default 1.0", "A factor of gradients."),
    ]
    returned = [f"tuple{after}", *wrapped(text, "    ")]
    return [
        f"The coefficients of one step of {rule.name}{after}.",
        *_section("Parameters", parameters),
        *_section("Returns", returned),
    ]


def _numba_update(rule: Rule) -> list[str]:
    states = "" if rule.by_row else "".join(f", {state}" for state in rule.elements)
    read = "".join(f", {name}" for name in rule.inputs)
    of_one = ["", "This is for one copy of the states. Call ``prologue`` once, then this for each copy."]
    of_rows = "From ``by_row``. This takes and returns no states, which are of rows."
    parameters = [
        *_entry(
            f"p, g{states}{read}",
            "float",
            "The parameter, its gradient" + ", its states" * bool(states) + ", inputs" * bool(read) + ".",
        ),
        *_entry("c", "tuple", "From ``complete``." if rule.by_tensor else "From ``fold``."),
        *(_entry("rate", "float", of_rows) if rule.by_row else []),
    ]
    return [
        f"The update of one element by {rule.name}.",
        "",
        "::",
        *_formulas(rule, set()),
        *(of_one if rule.vector else []),
        *_section("Parameters", parameters),
        *_section("Returns", (f"p{states}", "    After the step.")),
    ]


def _numba_by_row(rule: Rule) -> list[str]:
    states = ", ".join(rule.state_names)
    parameters = [
        *_entry("square", "float", "The mean over the row of the squared gradient, after ``prologue``."),
        *_entry(states, "float", "The row's states."),
        *_entry("c", "tuple", "From ``fold``."),
    ]
    return [
        f"The states of a row after a step of {rule.name}: to be called once for each row.",
        *_section("Parameters", parameters),
        *_section("Returns", (f"{states}, rate", "    The states after the step, and what ``update`` takes.")),
    ]


def _numba_prologue(rule: Rule) -> list[str]:
    text = f"Comes before {rule.name}'s update: scales the gradient, adds its L2 decay, decays the parameter."
    parameters = [*_entry("p, g", "float", "The parameter, its gradient."), *_entry("c", "tuple", "From ``fold``.")]
    return [text, *_section("Parameters", parameters), *_section("Returns", ("p, g", "    For ``update``."))]


def _numba_measure(rule: Rule) -> list[str]:
    whole = _measured(rule)
    states = "".join(f", {state}" for state in rule.measured)
    parameters = [
        *_entry(f"p, g{states}", "float", "Of the element, before the step."),
        *(_entry(", ".join(rule.read_before), "float", f"Of {whole}, before the step.") if rule.read_before else ()),
        *_entry("c", "tuple", "From ``fold``."),
    ]
    text = f"    For each of {', '.join(rule.sums)} the pair whose product is to be summed."
    return [
        f"Measures one element for {rule.name}: to be summed over {whole}, in float64, before any update of it.",
        *_section("Parameters", parameters),
        *_section("Returns", ("tuple of pairs", text)),
    ]


def _measured(rule: Rule) -> str:
    """Name what a stage measures."""
    return "all tensors" if rule.over_all else "the tensor"


def _numba_complete(rule: Rule) -> list[str]:
    whole = _measured(rule)
    parameters = [
        *_entry("real", "type", "As of ``fold``."),
        *_entry(", ".join(rule.sums), "float", f"The sums of the products of ``measure`` over {whole}."),
        *(_entry(", ".join(rule.singles), "float", f"States of one number of {whole}.") if rule.singles else ()),
        *_entry("c", "tuple", "From ``fold``."),
    ]
    before, are = "".join(f"{name}, " for name in rule.singles), "are" if rule.over_all else "is"
    return [
        f"The coefficients for a tensor in one step of {rule.name}, once {whole} {are} measured.",
        *_section("Parameters", parameters),
        *_section("Returns", (f"{before}c" if before else "tuple", "    For ``update``.")),
    ]


_NUMBA = {
    "fold": _numba_fold,
    "update": _numba_update,
    "by_row": _numba_by_row,
    "measure": _numba_measure,
    "complete": _numba_complete,
    "prologue": _numba_prologue,
}


# ---- the C header ----


def header_text(rows: Mapping[str, Mapping[str, Hyper]], width: int) -> list[str]:
    """The rules and their hyper-parameters, for the comment at the head of the C header.

    Parameters
    ----------
    rows : mapping of str to mapping of str to Hyper
        The row of hyper-parameters of each rule, as C has it: each default is a number, NaN where there is none.
    width : int
        The most characters of a line.

    Returns
    -------
    list of str
        The lines.
    """
    lines: list[str] = []
    rules_of: dict[str, dict[str, list[str]]] = {}  # by hyper-parameter and meaning
    for name, hypers in rows.items():
        lines += [*_rule_for_c(RULES[name], hypers), ""]
        for key, hyper in hypers.items():
            text = f"({hyper.domain}): {hyper.meaning}".replace("True or False", "0 or 1").replace("None", "NaN")
            rules_of.setdefault(key, {}).setdefault(text, []).append(name)
    lines += ["The hyper-parameters:", ""]
    for key, texts in sorted(rules_of.items()):
        for k, (text, rules) in enumerate(sorted(texts.items(), key=lambda item: -len(item[1]))):
            lines.append(f"{key} of {', '.join(rules)} {text}" if k else f"{key} {text}")
    wrapper = textwrap.TextWrapper(width, break_on_hyphens=False)
    for k, line in enumerate(lines):
        wrapper.subsequent_indent = " " * (len(line) - len(line.lstrip()) + 4)
        lines[k] = wrapper.fill(line)
    return "\n".join(lines).split("\n")


def _rule_for_c(rule: Rule, hypers: Mapping[str, Hyper]) -> Iterator[str]:
    """The lines of one rule in the C header."""
    begins = {state: f" (may begin at {rule.hyper[name].domain})" for state, name in rule.begins.items()}
    states = ", ".join(state + begins.get(state, "") for state in rule.state_names) or "none"
    yield f"{rule.name} - {rule.summary}."
    yield from _assignments(rule)
    shape = "; one element for each row" if rule.by_row else ""
    shape = f"; {', '.join(rule.singles)} {'is' if len(rule.singles) == 1 else 'are'} single" if rule.singles else shape
    yield f"  states: {states}{shape}"
    if rule.inputs:
        yield f"  inputs: {', '.join(rule.inputs)}"
    values = ", ".join(f"{name}={hyper.default:g}" for name, hyper in hypers.items())
    yield f"  hyper-parameters: {values.replace('=nan', '=NaN')}"
    yield f"  source: {rule.source}"


# ---- tables ----


def table() -> str:
    """The rules with their formulas and sources, as a table in Markdown."""
    lines = ["| class | function | update of an element, or of a matrix | source |", "|---|---|---|---|"]
    for rule in EVERY_RULE.values():
        formula = re.sub(r"\|(\w)\|", r"abs(\1)", rule.formula).replace("*", "\\*")
        lines.append(f"| `{rule.optimizer}` | `{rule.name}` | {formula} | {rule.source} |")
    return "\n".join(lines)


def listing(width: int) -> str:
    """The rules with their formulas and sources, as lines of at most so many characters."""
    wrapper = textwrap.TextWrapper(max(width, 20), "  ", "    ", break_on_hyphens=False)
    lines = []
    for rule in EVERY_RULE.values():
        lines.append(f"{rule.optimizer}, {rule.name}")
        for text in (rule.formula, rule.source):
            lines += wrapper.wrap(text)
    return "\n".join(lines)
