"""README and the contributors' pages: what they link to is there, what they say to install and to run can be."""

import re
from pathlib import Path

import pytest

import fastopt
from fastopt.optimizers import CLASSES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / ".github").glob("*.md"))]
TEXTS = {path.name: path.read_text() for path in PAGES}
README = TEXTS["README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_that_are_named_are_there(page):
    """In code: ``tests/test_bits.py``, ``.ci/run``, ``csrc/``."""
    code = " ".join(re.findall(r"`([^`\n]+)`", page.read_text()))
    names = re.findall(r"(?<![\w/.])(?<!--plot )((?:tests|benchmarks|csrc|fastopt|\.ci|\.github)/[\w./*-]*)", code)
    assert names or page.name == "SECURITY.md"
    assert not [name for name in names if not list(ROOT.glob(name.rstrip("/")))]


def test_extras_are_there():
    settings = (ROOT / "pyproject.toml").read_text()
    table = settings.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", table, re.M))
    sources = [path.read_text() for path in (ROOT / "fastopt").rglob("*.py")]
    named = set(re.findall(r"install_command\(['\"](\w+)", " ".join(sources)))
    asked = set(re.findall(r'"\.\[(\w+)\]"', " ".join(TEXTS.values()))) | named
    assert {"bench", "test", "cuda", "torch", "peers"} <= asked <= extras


def test_commands_install_in_place():
    """A clone that is installed elsewhere runs without its library when Python is started in it."""
    for command in re.findall(r"pip install[^\n`&]*", " ".join(TEXTS.values())):
        assert "." not in re.split(r"[\s\"\[]+", command) or " -e " in command, command


def test_every_class_is_named():
    beginning = README.partition("\n## ")[0]
    own = {"RowwiseAdagrad": "row-wise Adagrad"}
    for name in CLASSES:
        assert re.search(rf"\b{own.get(name, name)}\b", beginning), name


def test_the_changelog_knows_this_version():
    newest = re.search(r"^### Changelog\n\n\*\*([\d.]+)\*\*", README, re.M)
    assert newest and newest[1] == fastopt.__version__


def test_bounds_are_what_readme_says():
    settings = (ROOT / "pyproject.toml").read_text()
    for package, name in {"Python": "requires-python", "NumPy": "numpy", "Numba": "numba"}.items():
        bound = re.search(rf'{name}(?: = ")?>=([\d.]+)', settings)[1]
        assert f"{package} ({bound})" in README
