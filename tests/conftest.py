"""The stub CUDA driver, for files of tests in a process of their own.

A CUDA driver, once loaded, stays, and libraries remember whether they found one, numba-cuda from its import on. Files
with `pytestmark = pytest.mark.stub_driver` therefore run in a fresh interpreter that loads the stub before all else:
one for all tests of the file, as long as they follow one another. That child is told the tests one by one, and its
reports are this process's. Should it crash, the test fails that ran then, and the next one gets a new child.
`stub_driver(compute_capability=(7, 5))` chooses the device.

With ``pytest --gpu`` they run on this machine's own CUDA device instead, and with them the tests marked `gpu`, which
nothing but a device will do for.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest
from _pytest.runner import runtestprotocol

from .ptx import driver

_CHANNEL = "FASTOPT_TEST_CHANNEL"  # in a child's environment: the descriptor of its connection, the compute capability
_channel, *_capability = map(int, os.environ.pop(_CHANNEL, "-1").split())
_is_child = _channel >= 0
_child: "_Child | None" = None


def pytest_addoption(parser):
    parser.addoption("--gpu", action="store_true", help="tests of CUDA run on this machine's device, not on a stub")


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device, and runs with --gpu")
    config.addinivalue_line("markers", "stub_driver(compute_capability): the file runs with the stub CUDA driver")
    if _is_child:
        with contextlib.suppress(driver.Unavailable):  # of which the fixture tells
            driver.install(tuple(_capability))


class _Child:
    def __init__(self, config, path, compute_capability=(9, 0)):
        self.path = path
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `end`)
        self.connection, other = Pipe()
        # Marks do not matter: the tests to run are named one by one.
        command = [sys.executable, "-m", "pytest", "-n0", "-m", "", "-p", "no:cacheprovider"]
        self.process = subprocess.Popen(
            [*command, f"--tb={config.option.tbstyle}", f"--rootdir={config.rootpath}", os.fspath(path)],
            cwd=config.invocation_params.dir,
            env={**os.environ, _CHANNEL: " ".join(map(str, (other.fileno(), *compute_capability)))},
            pass_fds=[other.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )
        other.close()  # the child's alone, so that its death is the end of the connection

    def run(self, item, nextitem):
        """The reports of a test, as they come; raises EOFError or OSError if the child dies."""
        self.connection.send((item.nodeid, nextitem.nodeid if nextitem is not None else None))
        yield from iter(self.connection.recv, None)

    def end(self):
        """Let the child end; returns how it did."""
        with self.output:
            self.connection.close()
            code = self.process.wait()
            self.output.seek(0)
            return f"the process of {self.path.name} ended with {code}:\n{self.output.read()[-4000:]}"


def _end_child():
    global _child
    ended, _child = _child, None
    return ended and ended.end()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    global _child
    marker = item.get_closest_marker("stub_driver")
    if _is_child or marker is None or item.config.option.gpu:
        return None
    if _child is None or _child.path != item.path:
        _end_child()
        _child = _Child(item.config, item.path, **marker.kwargs)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    try:
        for data in _child.run(item, nextitem):
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
            item.ihook.pytest_runtest_logreport(report=report)
    except (EOFError, OSError):
        report = pytest.TestReport(item.nodeid, item.location, {}, "failed", _end_child(), "call")
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    if nextitem is None or nextitem.path != item.path:
        _end_child()
    return True


def pytest_unconfigure():
    _end_child()  # where the run stops before the last test of the file


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    if not _is_child or session.config.option.collectonly:
        return None
    items = {item.nodeid: item for item in session.items}
    with contextlib.suppress(EOFError), Connection(_channel) as connection:
        while True:
            nodeid, following = connection.recv()
            for report in runtestprotocol(items[nodeid], log=False, nextitem=items.get(following)):
                data = session.config.hook.pytest_report_to_serializable(config=session.config, report=report)
                connection.send(data)
            connection.send(None)
    return True


class OwnGpu:
    """This machine's device: of what the stub driver counts and keeps it has nothing."""

    launches = ()
    synchronizations = 0


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("gpu") and not config.option.gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device: pytest --gpu"))


@pytest.fixture
def gpu(request):
    """The stub CUDA driver's device, or this machine's with ``--gpu``.

    What a launch raised, and the test did not ask for, is raised at the end.
    """
    if request.config.option.gpu:
        from numba import cuda

        yield OwnGpu()
        cuda.synchronize()
        return
    assert _is_child, "files that use the stub driver are marked stub_driver"
    try:
        found = driver.install(tuple(_capability))
    except driver.Unavailable as reason:
        pytest.skip(f"there is no stub CUDA driver: {reason}")
    found.reset()
    yield found
    found.execute, found.capturing = True, False
    found.check()


@pytest.fixture
def set_isa():
    """Chooses the C library's instruction set; afterwards it is the best again."""
    native = pytest.importorskip("fastopt.backends.native")
    yield native.set_isa
    native.set_isa(None)
