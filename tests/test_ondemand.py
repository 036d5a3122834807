"""What is made when it is first asked for: classes and functions of the table."""

import subprocess
import sys
import threading
from importlib import import_module

import pytest

import fastopt
from fastopt import functional
from fastopt.ondemand import OnDemand


def test_a_value_is_made_once_and_when_asked_for():
    made = []
    found = OnDemand("ab", lambda name: made.append(name) or name * 2)
    assert list(found) == ["a", "b"] and len(found) == 2 and "a" in found and "c" not in found and not made
    assert found["b"] == found["b"] == "bb" and made == ["b"]
    assert dict(found) == {"a": "aa", "b": "bb"} and made == ["b", "a"]
    with pytest.raises(KeyError):
        found["c"]


def test_threads_that_ask_at_once_have_one_value():
    start = threading.Barrier(8)

    def make(name):
        start.wait()  # every thread is making it
        return object()

    found, values = OnDemand(["a"], make), []
    threads = [threading.Thread(target=lambda: values.append(found["a"])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(values) == 8 and set(map(id, values)) == {id(found["a"])}


def test_an_import_loads_nothing():
    """Not NumPy either; and what is asked for is found, in any order."""
    code = (
        "import sys; before = set(sys.modules); import fastopt; new = sys.modules.keys() - before; "
        "assert {name for name in new if name.startswith('fastopt')} == {'fastopt', 'fastopt._version'}; "
        "assert not new & {'numpy', 'typing', 'inspect', 'dataclasses', 'cffi'}; "
        "from fastopt import settings, RULES, schedules; assert fastopt.Demon is schedules.Demon; "
        "from fastopt import *; assert AdamW is fastopt.AdamW and functional is sys.modules['fastopt.functional']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", fastopt.__all__)
def test_each_name_is_found_first(name):
    """The namespaces that are loaded by others do not hide one that is missing."""
    home = fastopt._HOME_OF.get(name)
    assert home is None or hasattr(import_module(f"fastopt.{home}".rstrip(".")), name)
    assert getattr(fastopt, name) is not None


def test_what_is_not_there_is_told():
    for name, hint in [
        ("Adm", "did you mean 'Adam'"),
        ("adam", "did you mean 'Adam'"),
        ("__nothing__", "no attribute"),
    ]:
        with pytest.raises(AttributeError, match=hint):
            getattr(fastopt, name)
    assert not hasattr(fastopt, "no_such_module")


def test_an_import_makes_neither_classes_nor_functions():
    code = (
        "import fastopt, pickle; from fastopt import functional; assert not {'AdamW', 'SGD'} & vars(fastopt).keys(); "
        "assert 'adamw' not in vars(functional); assert pickle.loads(pickle.dumps(fastopt.AdamW)) is fastopt.AdamW; "
        "assert functional.adamw is functional.adamw is pickle.loads(pickle.dumps(functional.adamw)); "
        "assert 'AdamW' in vars(fastopt) and 'SGD' not in vars(fastopt)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {name for name in dir(fastopt) if isinstance(getattr(fastopt, name), type)} >= {"AdamW", "Muon"}
    assert dir(functional) == sorted(functional.__all__)
