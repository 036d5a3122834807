"""The command that errors advise installs from where the installation came: no index is known to have fastopt."""

import json
import re
import shlex
from importlib import metadata
from pathlib import Path

import pytest

from fastopt import errors
from fastopt.errors import install_command

from .pages import PAGES, ROOT


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A function that pretends the package was installed from an address, as PEP 610 has it written down."""
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "fastopt" / "errors.py"))
    monkeypatch.syspath_prepend(tmp_path)

    def install(origin):
        info = tmp_path / "fastopt-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fastopt\nVersion: 0.1\n")
        if origin is not None:
            (info / "direct_url.json").write_text(json.dumps(origin))

    return install


def test_in_a_clone():
    assert shlex.split(install_command("cuda")) == ["pip", "install", "-e", f"{ROOT}[cuda]"]
    assert shlex.split(install_command(options="--no-deps")) == ["pip", "install", "--no-deps", "-e", str(ROOT)]


@pytest.mark.parametrize(
    ("origin", "url"),
    [
        ({"url": "file:///a/clone", "dir_info": {}}, "file:///a/clone"),
        ({"url": "file:///w/fastopt-0.1-cp310-abi3-linux_x86_64.whl", "archive_info": {}},
         "file:///w/fastopt-0.1-cp310-abi3-linux_x86_64.whl"),
        ({"url": "https://x.example/r.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
         "git+https://x.example/r.git@abc"),
    ],
)  # fmt: skip
def test_from_an_address(installed, origin, url):
    installed(origin)
    assert shlex.split(install_command("cuda")) == ["pip", "install", f"fastopt[cuda] @ {url}"]
    assert shlex.split(install_command()) == ["pip", "install", f"fastopt @ {url}"]


@pytest.mark.parametrize("where", ["a folder", "an index"])
def test_without_an_address(installed, monkeypatch, where):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    installed(None)
    if where == "a folder":
        monkeypatch.setattr(metadata, "distribution", missing)
    assert install_command("cuda") == "pip install -e '.[cuda]' (in a clone of fastopt)"


def test_no_index_is_promised():
    """Neither ``pip install fastopt`` nor an extra of it: pip would find nothing, or another's package."""
    sources = [path for room in ("fastopt", "tests", "benchmarks") for path in (ROOT / room).rglob("*.py")]
    promise = re.compile(r"(?:pip|uv|conda) (?:install|add)[^\n`&;]*[\s\"']fastopt(?! @)(?:\[|[\s\"'`.]|$)")
    assert promise.search('pip install "fastopt[cuda]"') and promise.search("pip install -U fastopt\n")
    found = {path: promise.findall(path.read_text()) for path in [*PAGES, *sources] if path != Path(__file__)}
    assert not {path: promises for path, promises in found.items() if promises}
