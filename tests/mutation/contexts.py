"""A plugin of pytest for `tests.mutation.python`: which test runs which line, and how long it takes.

Each test is a context of coverage.py's. Processes that a test starts find its name in their environment, and have it as
theirs.
"""

import json
import os

import coverage
import pytest

_TEST, _SECONDS = "MUTATION_TEST", "MUTATION_SECONDS"
_seconds: dict[str, float] = {}
_not_passed: set[str] = set()


def _switch(test):
    os.environ[_TEST] = test
    if (current := coverage.Coverage.current()) is not None:
        current.switch_context(test)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item):
    _switch(item.nodeid)
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item):
    try:
        return (yield)
    finally:
        _switch("")


def pytest_runtest_logreport(report):
    _seconds[report.nodeid] = _seconds.get(report.nodeid, 0.0) + report.duration
    if report.outcome != "passed":
        _not_passed.add(report.nodeid)


def pytest_sessionfinish():
    if _seconds:  # the children for the stub of the CUDA driver report to their parent
        with open(os.environ[_SECONDS], "w") as file:
            json.dump({test: round(took, 4) for test, took in _seconds.items() if test not in _not_passed}, file)
