"""Internal. Writes the files that are made from the rule table: the stubs, which editors and type checkers read.

::

    python -m fastopt.generate

is to be run in a clone, after a change of rules or signatures; a test compares the files with what it would write.
(The table of rules in ``fastopt/rules/README.md`` stands between marks, and is written too.)
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import documentation, functional, optimizers
from .binding.options import EXECUTION, FILES, Arguments
from .rules import EVERY_RULE, FactoredRule, Hyper

FOLDER = Path(__file__).parent
_HEAD = '"""{}"""\n\n# Written by: python -m fastopt.generate\n\n'
_TYPES = "from ._types import {}\n"
# Names that fastopt.torch hands on of torch.optim: those of every PyTorch that it works with.
_HANDED_ON = ("LBFGS", "lr_scheduler", "swa_utils")


def _quoted(text: str, indent: str) -> str:
    """A docstring."""
    lines = text.splitlines()
    body = "\n".join(f"{indent}{line}".rstrip() for line in lines)[len(indent) :]
    return f'{indent}"""{body}' + (f'\n{indent}"""' if len(lines) > 1 else '"""')


def _definition(name: str, parameters: list[inspect.Parameter], returned: str, text: str, indent: str = "") -> str:
    """A function's stub, whose annotations are text; one line a parameter."""
    lines, star = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            lines.append("*")
            star = True
        annotated = parameter.annotation is not parameter.empty
        line = f"{parameter.name}: {parameter.annotation}" if annotated else parameter.name
        if parameter.default is not parameter.empty:
            line += f" = {parameter.default!r}" if annotated else f"={parameter.default!r}"
        lines.append(line)
    body = "".join(f"{indent}    {line},\n" for line in lines)
    head = f"{indent}def {name}(\n{body}{indent}) -> {returned}:"
    return f"{head}\n{_quoted(text, indent + '    ')}\n" if text else f"{head} ...\n"


def _type(hypers: list[Hyper], schedules: bool) -> str:
    """The type of a hyper-parameter, or of several."""
    if hypers[0].names:
        name = f"Literal[{', '.join(map(repr, hypers[0].names))}]"
        return f"{name} | None" if hypers[0].optional else name
    name = "bool" if hypers[0].flag else "Value" if schedules else "Number"
    if len(hypers) > 1 and any(hyper.optional for hyper in hypers):
        return f"tuple[{', '.join(name + ' | None' * hyper.optional for hyper in hypers)}]"
    if len(hypers) == 2:
        name = f"{name}Pair"
    elif len(hypers) > 2 or hypers[0].vector:
        name = f"{name}s"
    return f"{name} | None" if hypers[0].optional else name


def _class(cls: Any, arguments: Arguments, params: str, schedules: bool, others: Mapping[str, str]) -> str:
    """The stub of a class that comes from the rule table."""
    hypers = arguments.hypers()
    types = {"self": inspect.Parameter.empty, "params": params, **others}
    types |= {name: _type(own, schedules) for name, own in hypers.items()}
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [p.replace(annotation=types[p.name]) for p in (first, *inspect.signature(cls).parameters.values())]
    body = _definition("__init__", parameters, "None", "", "    ")
    if arguments.evaluated:
        body = "\n".join([body, *(_written(member, "    ") for member in (cls.eval, cls.train))])
    if arguments.inputs:
        body = "\n".join([body, *(_written(member, "    ") for member in (cls.bind, cls.step))])
    return f"class {cls.__name__}(Optimizer):\n{_quoted(cls.__doc__, '    ')}\n\n{body}"


def _written(function: Any, indent: str = "") -> str:
    """The stub of a function that is written out."""
    signature = inspect.signature(function)
    text = inspect.getdoc(function) or ""
    return _definition(
        function.__name__, list(signature.parameters.values()), str(signature.return_annotation), text, indent
    )


def _package_stub() -> str:
    """The text of fastopt/__init__.pyi."""
    source = ast.parse((FOLDER / "__init__.py").read_text())
    classes = dict(optimizers.EVERY_CLASS)
    text = _HEAD.format(ast.get_docstring(source)) + "from os import PathLike\n"
    text += "from typing import Literal, SupportsIndex\n\n"
    text += _TYPES.format("Number, Params, StateDtype, Value, ValuePair, Values")
    import fastopt

    for home, names in {"_version": ["__version__"], **fastopt._HOMES}.items():
        text += f"from .{home} import {', '.join(f'{name} as {name}' for name in names)}\n"
    text += f"\n__all__ = {_public()!r}\n"
    others = {name: kind for name, (_, kind) in {**EXECUTION, **FILES}.items()}
    for cls in classes.values():
        text += "\n" + _class(cls, cls._arguments, "Params", True, others)  # type: ignore[attr-defined]
    return text


def _public() -> list[str]:
    import fastopt

    return sorted(fastopt.__all__)


def _functional_stub() -> str:
    """The text of fastopt/functional.pyi."""
    text = _HEAD.format(inspect.getdoc(functional)) + "from collections.abc import Sequence\n"
    text += "from typing import Literal, SupportsIndex\n\n" + _TYPES.format("Array, Gradient, Number, Numbers")
    text += "from .jobs.noise import GradientNoise\n"
    text += f"\n__all__ = {functional.__all__!r}\n"
    for name, rule in EVERY_RULE.items():
        arrays = dict.fromkeys(("param", *rule.arrays), "Array | Sequence[Array]")
        types = {**arrays, "grad": "Gradient | Sequence[Gradient]", "step": "SupportsIndex", "grad_scale": "Number"}
        types |= {"gradient_noise": "GradientNoise | None", "first_element": "SupportsIndex"}
        types |= {"backend": "str | None", "threads": "SupportsIndex | None"}
        types |= dict.fromkeys(rule.scalars, "Number | None")
        if isinstance(rule, FactoredRule):  # which states there are depends on the shape
            types |= dict.fromkeys(rule.state_names, "Array | Sequence[Array | None] | None")
        types |= {key: _type([hyper], False) for key, hyper in rule.hyper.items()}
        function = getattr(functional, name)
        parameters = [p.replace(annotation=types[p.name]) for p in inspect.signature(function).parameters.values()]
        text += "\n" + _definition(name, parameters, "None", function.__doc__)
    return text


def _torch_stub() -> str:
    """The text of fastopt/torch.pyi, whose signatures are those of the installed PyTorch."""
    import torch

    from . import torch as face

    text = _HEAD.format(inspect.getdoc(face)) + f"# of torch {'.'.join(torch.__version__.split('.')[:2])}\n\n"
    text += "from collections.abc import Callable, Iterable, Mapping\n"
    text += "from typing import Any, Literal, SupportsIndex\n\nimport torch\n"
    text += f"from torch.optim import {', '.join(f'{name} as {name}' for name in _HANDED_ON)}\n"
    text += "from torch.optim.optimizer import ParamsT\n\n"
    text += _TYPES.format("Number, NumberPair, Numbers, StateDtype")
    text += "from .jobs.noise import GradientNoise\n"
    text += f"\n__all__ = {[*face.__all__, *_HANDED_ON]!r}\n\n"
    text += "\n".join(_base(face.Optimizer))
    others = {name: kind for name, (_, kind) in EXECUTION.items()}
    others |= dict.fromkeys(("foreach", "fused"), "bool | None") | dict.fromkeys(
        ("capturable", "differentiable"), "bool"
    )
    for cls in (*face.CLASSES.values(), *face.MATRIX_CLASSES.values()):
        text += "\n" + _class(cls, cls._arguments, "ParamsT", False, others)
    return text + "\n" + _written(face.clip_grad_norm_)


def _base(cls: type) -> Iterator[str]:
    """The stub of what the classes for torch have in common."""
    yield f"class Optimizer(torch.optim.Optimizer):\n{_quoted(inspect.getdoc(cls) or '', '    ')}\n"
    for name, kind in inspect.get_annotations(cls).items():
        if not name.startswith("_") and "ClassVar" not in kind:
            yield f"    {name}: {kind}"
    for name, member in vars(cls).items():
        if inspect.isfunction(member) and not name.startswith("_"):
            yield _written(member, "    ")


#: The writers of the stubs, by path.
STUBS = {"__init__.pyi": _package_stub, "functional.pyi": _functional_stub, "torch.pyi": _torch_stub}
_BEGIN, _END = "<!-- rules -->\n", "\n<!-- end of rules -->"


def with_table(page: str) -> str:
    """A page with the table of rules between its marks."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{documentation.table()}\n{_END}{after}"


def main() -> None:
    """Writes all of it."""
    for name, stub in STUBS.items():
        (FOLDER / name).write_text(stub())
    page = FOLDER / "rules" / "README.md"
    page.write_text(with_table(page.read_text()))


if __name__ == "__main__":
    main()
