"""Docstrings: each public name has its arguments, its source and an example that runs."""

import doctest
import inspect
import re
import subprocess
import sys

import pytest

from fastopt import training

RESULTS = {"GradientCheck"}


@pytest.mark.parametrize("name", sorted(set(training.__all__) - RESULTS))
def test_docstrings(name):
    documented = getattr(training, name)
    text = inspect.getdoc(documented)
    runner = doctest.DocTestRunner()
    output = []
    for test in doctest.DocTestFinder(recurse=False).find(documented, name, globs={}):
        runner.run(test, out=output.append)
    assert runner.tries >= 1 and not runner.failures, "".join(output)
    sections = re.findall(r"^(\w+)\n---+$", text, re.M)
    assert {"Parameters", "Raises", "Examples"} <= set(sections)
    assert re.search(r"\b(19|20)\d\d\b", text), "no source"
    taken = set(inspect.signature(documented).parameters)
    described = text[text.index("\nParameters\n") :]
    named = set(re.findall(r"\w+", " ".join(re.findall(r"^(\*?\w.*?) : ", described, re.M))))
    assert taken <= named


def test_nothing_else_is_imported_with_fastopt():
    code = "import sys, fastopt; print('fastopt.training' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_numba_is_loaded_when_it_is_used():
    code = "import sys, fastopt.training; print('numba' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
