"""Stubs, for editors and type checkers: they are what the command writes, and mistakes are found."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastopt
from fastopt import generate

FOLDER = Path(fastopt.__file__).parent
PROGRAMS = Path(__file__).parent / "typed"


def module(name):
    return importlib.import_module("fastopt" if name == "__init__.pyi" else f"fastopt.{name.removesuffix('.pyi')}")


def read_stub(name):
    """The text of a stub; those of torch are of one version, and others may have other signatures."""
    text = (FOLDER / name).read_text()
    if name == "torch.pyi":
        torch = pytest.importorskip("torch")
        (version,) = re.findall(r"^# of torch (\S+)$", text, re.M)
        if not torch.__version__.startswith(f"{version}."):
            pytest.skip(f"the stub is of torch {version}, and {torch.__version__} is installed")
    return text


@pytest.mark.parametrize("name", generate.STUBS)
def test_stubs_are_what_the_command_writes(name):
    assert read_stub(name) == generate.STUBS[name](), "run python -m fastopt.generate"


def test_the_page_of_rules_is_what_the_command_writes():
    page = (FOLDER / "rules" / "README.md").read_text()
    assert page == generate.with_table(page), "run python -m fastopt.generate"
    assert page.replace("Kingma", "Kinga") != generate.with_table(page.replace("Kingma", "Kinga"))


def parameters_of(node):
    """Names, kinds and defaults of a function in a stub."""
    kind = inspect.Parameter
    positional = node.args.posonlyargs + node.args.args
    defaults = [kind.empty] * (len(positional) - len(node.args.defaults)) + node.args.defaults
    found = [(a.arg, kind.POSITIONAL_OR_KEYWORD, d) for a, d in zip(positional, defaults, strict=True)]
    found += [
        (a.arg, kind.KEYWORD_ONLY, kind.empty if d is None else d)
        for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    ]
    return [(n, k, ast.literal_eval(d) if isinstance(d, ast.AST) else d) for n, k, d in found]


@pytest.mark.parametrize("name", generate.STUBS)
def test_signatures_are_those_at_run_time(name):
    tree, own = ast.parse(read_stub(name)), module(name)
    defined = {node.name: node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    expected = {called for called in own.__all__ if getattr(getattr(own, called), "__module__", "") == own.__name__}
    assert expected <= set(defined)
    for called, node in defined.items():
        at_run_time = getattr(own, called)
        assert ast.get_docstring(node) == inspect.getdoc(at_run_time)
        methods = (
            [node] if isinstance(node, ast.FunctionDef) else [n for n in node.body if isinstance(n, ast.FunctionDef)]
        )
        for method in methods:
            found = at_run_time
            if method is not node and method.name != "__init__":
                found = getattr(at_run_time, method.name)
            signature = [(p.name, p.kind, p.default) for p in inspect.signature(found).parameters.values()]
            skipped = 1 if method.name == "__init__" else 0
            assert parameters_of(method)[skipped:] == signature, f"{called}.{method.name}"


PUBLIC = re.findall(r"``(\w+)``", fastopt.__doc__)


@pytest.mark.parametrize("name", ["fastopt", *(f"fastopt.{name}" for name in PUBLIC)])
def test_completion_shows_what_is_public_and_documented(name):
    if name == "fastopt.torch":
        pytest.importorskip("torch")
    own = importlib.import_module(name)
    handed_on = {name for name in dir(own.torch.optim) if name[0] != "_"} if name == "fastopt.torch" else set()
    assert dir(own) == sorted({*own.__all__, *handed_on})
    sources = "\n".join(file.read_text() for file in FOLDER.rglob("*.py"))
    for called in own.__all__:
        public = getattr(own, called)
        if inspect.isclass(public) or inspect.ismodule(public) or callable(public):
            assert inspect.getdoc(public), called
        elif called != "__version__":
            assert re.search(rf"^#: .+\n(#.*\n)*{called}\b", sources, re.M), called


def test_every_schedule_is_public():
    assert set(fastopt.schedules.SCHEDULES) <= set(fastopt.schedules.__all__)


def test_internal_modules_say_so():
    modules = [file.parent for file in FOLDER.glob("*/__init__.py")]
    modules += [file for file in FOLDER.glob("*.py") if file.name != "__init__.py"]
    assert set(PUBLIC) <= {module.stem for module in modules}
    for module in modules:
        source = module / "__init__.py" if module.is_dir() else module
        text = ast.get_docstring(ast.parse(source.read_text()))
        assert text.startswith("Internal. ") != (module.stem in PUBLIC), f"{module}: {text.splitlines()[0]}"


def run_checker(checker, program, folder):
    """The lines in which a type checker finds something, with what it says."""
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed")
    (folder / program.name).write_text(program.read_text())
    command = [sys.executable, "-m", checker]
    if checker == "mypy":
        command += ["--python-executable", sys.executable, "--ignore-missing-imports", "--no-error-summary"]
        command += ["--cache-dir", str(folder / "cache"), program.name]
    else:
        command += ["--outputjson", "--pythonpath", sys.executable, program.name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 1, done.stdout + done.stderr
    if checker == "mypy":
        found = re.findall(r"^(\S+?):(\d+): error: (.*)", done.stdout, re.M)
        assert {file for file, _, _ in found} == {program.name}, done.stdout
        return {int(line): text for _, line, text in found}
    found = json.loads(done.stdout)["generalDiagnostics"]
    return {x["range"]["start"]["line"] + 1: x["message"] for x in found if x["severity"] == "error"}


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
@pytest.mark.parametrize("program", ["arrays.py", "tensors.py"])
def test_mistakes_are_found(checker, program, tmp_path):
    if program == "tensors.py":
        pytest.importorskip("torch")
    lines = (PROGRAMS / program).read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if "# wrong: " in line}
    found = run_checker(checker, PROGRAMS / program, tmp_path)
    assert {line: found[line] for line in found.keys() - wrong} == {}
    assert [lines[number - 1] for number in sorted(wrong - found.keys())] == []
