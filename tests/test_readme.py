"""The pages: what they link to is there, what they say to install and to run can be, and their examples run."""

import re
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec

import pytest
from packaging.requirements import Requirement

import fastopt
from fastopt.optimizers import CLASSES

from .pages import PAGES, ROOT, examples

TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES}
README = TEXTS["README.md"]
EXAMPLES = [
    pytest.param(code, printed, id=f"{name}-{k}")
    for name, text in TEXTS.items()
    if name != "fastopt/hogwild/README.md"  # whose test_hogwild_models runs, and looks at what they learn
    for k, (code, printed) in enumerate(examples(text))
]


def anchors(text):
    """Return the anchors of a page: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_to_files(name):
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("name", TEXTS)
def test_files_that_are_named_are_there(name):
    """In code: ``tests/test_bits.py``, ``.ci/run``, ``csrc/``."""
    code = " ".join(re.findall(r"`([^`\n]+)`", TEXTS[name]))
    names = re.findall(r"(?<![\w/.])(?<!--plot )((?:tests|benchmarks|csrc|fastopt|\.ci|\.github)/[\w./*-]*)", code)
    assert not [name for name in names if not list(ROOT.glob(name.rstrip("/")))]


#: Packages that rooms of fastopt need, where their names differ.
NEEDS = {"distributed": "fastopt", "training": "fastopt", "trajectories": "matplotlib"}


@pytest.mark.parametrize(("code", "printed"), EXAMPLES)
def test_examples_run_alone(code, printed, tmp_path):
    for name in re.findall(r"^(?:from|import) (?:fastopt import )?(\w+)", code, re.M):
        package = NEEDS.get(name, name)
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    script = tmp_path / "example.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not printed or done.stdout == printed


def test_the_front_page_is_short():
    assert README.count("\n") <= 150


def test_every_room_has_its_door():
    rooms = {name for name in TEXTS if name.endswith("README.md")} - {"README.md"}
    links = re.findall(r"\]\(([^)#\s]+)", README)
    assert rooms <= set(links)


def test_extras_are_there():
    settings = (ROOT / "pyproject.toml").read_text()
    table = settings.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", table, re.M))
    sources = [path.read_text() for path in (ROOT / "fastopt").rglob("*.py")]
    named = set(re.findall(r"install_command\(['\"](\w+)", " ".join(sources)))
    asked = set(re.findall(r'"\.\[(\w+)\]"', " ".join(TEXTS.values()))) | named
    assert {"bench", "test", "cuda", "torch", "peers"} <= asked <= extras


def test_what_cuda_kernels_are_compiled_with_is_what_the_extra_asks_for():
    """numba-cuda compiles nothing under a NumPy that is newer than it knows."""
    if find_spec("numba_cuda") is None:
        pytest.skip("numba-cuda is not installed")
    requirements = map(Requirement, metadata.requires("fastopt"))
    asked = [needed for needed in requirements if needed.marker and needed.marker.evaluate({"extra": "cuda"})]
    assert {"numpy", "numba-cuda"} <= {needed.name for needed in asked}
    for needed in asked:
        assert needed.specifier.contains(metadata.version(needed.name)), needed


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
    newest = re.search(r"^## Changelog\n\n\*\*([\d.]+)\*\*", TEXTS[".github/CHANGELOG.md"], re.M)
    assert newest and newest[1] == fastopt.__version__


def test_bounds_are_what_the_pages_say():
    settings = (ROOT / "pyproject.toml").read_text()
    for package, name in {"Python": "requires-python", "NumPy": "numpy", "Numba": "numba"}.items():
        bound = re.search(rf'{name}(?: = ")?>=([\d.]+)', settings)[1]
        assert f"{package} ({bound})" in TEXTS[".github/CHANGELOG.md"]
