"""Numba's cache on disk: missing, full, damaged, or of another function."""

import ctypes
import importlib
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
from numba import config, types

import fastopt
from fastopt.backends import numba_cache

SIGNATURE = types.float64(types.float64)
HIT, MISSED = (1, 1), (0, 0)


def half(x):
    return x / 2


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """The folder that is cached in."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(numba_cache, "_warned", False)
    return tmp_path / "cache"


def use():
    """Compiles `half` as a new process does, to be called and as a callback: how many were found on disk, of each."""
    made = numba_cache.compiled(half)
    assert made(3.0) == 1.5
    callback = numba_cache.compiled_callback(half, SIGNATURE)
    assert ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(callback.address)(3.0) == 1.5
    return sum(made.stats.cache_hits.values()), callback.cache_hits


def python(code, **environment):
    """Run code in a new process; return its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=environment.get("PYTHONPATH"),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture
def unwritable(tmp_path):
    """The environment of a process for which no folder is there that Numba would cache in: files are in their place,
    which keep root out, too."""
    package = tmp_path / "fastopt"
    shutil.copytree(Path(fastopt.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [package, *filter(Path.is_dir, package.rglob("*"))]:
        (folder / "__pycache__").touch()
    (tmp_path / "file").touch()
    where = str(tmp_path / "file" / "folder")
    return {"PYTHONPATH": str(tmp_path), "HOME": where, "XDG_CACHE_HOME": where, "NUMBA_CACHE_DIR": where}


@pytest.mark.slow
def test_without_a_folder_to_write_in_functions_are_compiled_and_it_is_said_once(unwritable):
    code = f"""
import fastopt, numpy as np
assert fastopt.__file__.startswith({unwritable["PYTHONPATH"]!r})
assert fastopt.available_backends()["numba"] == "available"
fastopt.show_config()
import fastopt.numba, fastopt.hogwild
p = np.ones(3, "f4")
fastopt.functional.sgd(p, np.ones(3, "f4"), step=1, lr=0.5, backend="numba")
assert (p == 0.5).all()
X = np.array([0, 1]), np.array([0]), np.array([1.0])
fastopt.hogwild.LinearModel("squared").fit(X, [1.0], epochs=1)
"""
    errors = python(code, **unwritable)
    assert errors.count("RuntimeWarning") == 1, errors
    assert "NUMBA_CACHE_DIR" in errors


def test_what_is_compiled_is_found_again(cache):
    assert [use(), use()] == [MISSED, HIT]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: bytes(len(data)),
        lambda data: b"\xff garbage " * 100,
        lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 64]) + data[len(data) // 2 + 1 :],
    ],
    ids=["empty", "half", "a byte less", "zeros", "garbage", "a bit turned"],
)
@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_damaged_files_are_replaced(cache, suffix, damage):
    use()
    for path in cache.rglob(f"*{suffix}"):
        path.write_bytes(damage(path.read_bytes()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use()
        assert use() == HIT


def test_files_in_each_others_place_are_not_taken(cache):
    use()
    first, second = cache.rglob("*.nbc")
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert [use(), use()] == [MISSED, HIT]


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_folders_in_the_place_of_files(cache, suffix):
    use()
    for path in cache.rglob(f"*{suffix}"):
        path.unlink()
        path.mkdir()
    with pytest.warns(RuntimeWarning, match="cannot be cached on disk") as told:
        assert [use(), use()] == [MISSED, MISSED]
    assert len(told) == 1


def test_a_folder_that_goes(cache):
    made = numba_cache.compiled(half)
    shutil.rmtree(cache)
    cache.touch()
    with pytest.warns(RuntimeWarning, match="cannot be cached on disk"):
        assert made(3.0) == 1.5


def test_a_full_disk(cache):
    """Files may grow to no more than 1 KB."""
    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
from tests import test_numba_cache
assert test_numba_cache.use() == test_numba_cache.use() == {MISSED}
"""
    errors = python(code, NUMBA_CACHE_DIR=str(cache))
    assert errors.count("RuntimeWarning") == 1, errors
    assert not list(cache.rglob("*.tmp.*"))
    assert [use(), use()] == [MISSED, HIT]


def test_a_digest_is_of_what_modules_are_loaded_from(tmp_path, monkeypatch):
    """Wherever they are: an archive too."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "a"), str(tmp_path / "b.zip")])
    (tmp_path / "a").mkdir()
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for name, source in (("one_kernel", "x = 1"), ("same_kernel", "x = 1"), ("other_kernel", "x = 2")):
            (tmp_path / "a" / f"{name}.py").write_text(source)
            archive.writestr(f"zipped_{name}.py", source)
    names = [f"{where}{name}_kernel" for where in ("", "zipped_") for name in ("one", "same", "other")]
    one, same, other, *zipped = map(numba_cache.digest_of, map(importlib.import_module, names))
    assert one == same != other and zipped == [one, same, other]
