"""Internal. ``fastopt run``: a program in several processes, started anew with one fewer where one has died."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from ..errors import BackendUnavailable, install_command
from . import raised
from .ending import FAILED, SURVIVES

_INTERRUPTED = 130
_PATIENCE = 10.0  # seconds that processes have to end in
#: Seconds until a machine that says nothing is asked, between two such questions, and how many remain unanswered.
_SILENCE = {"oob_tcp_keepalive_time": 5, "oob_tcp_keepalive_intvl": 1, "oob_tcp_keepalive_probes": 5}
_LOST = b"lost communication with a remote daemon"
#: Variables that other machines are told: threads, and where Python looks for modules.
_TOLD = ("OMP_NUM_THREADS", "PYTHONPATH")


def run(
    ranks: int,
    program: str,
    arguments: Sequence[str] = (),
    *,
    hosts: Sequence[tuple[str, int]] = (),
    restarts: int = 0,
    servers: int = 0,
    spares: int = 0,
) -> int:
    """Run a program in several processes, until all have ended.

    Parameters
    ----------
    ranks : int
        The number of processes.
    program : str
        A file of Python.
    arguments : sequence of str
        The program's.
    hosts : sequence of (str, int)
        Machines, with the number of processes that each has room for; by default this one.
    restarts : int
        How often the program is started anew, with a process fewer, where a process has failed; not where all of one
        machine's have raised exceptions.
    servers, spares : int
        The processes that `fastopt.distributed.run` has for servers, and that take over from them. With servers the
        others go on where a process has ended.

    Returns
    -------
    int
        The exit status: that of a process that failed, 130 after Ctrl-C, else 0.

    Raises
    ------
    BackendUnavailable
        Several processes are asked for, and there is no MPI.
    FileNotFoundError
        There is no such program.
    """
    if not Path(program).is_file():
        raise FileNotFoundError(2, "No such file", program)
    most = max((slots for _, slots in hosts), default=ranks)
    threads = max(len(os.sched_getaffinity(0)) // most, 1)
    # It stays when the program is started anew: what a slice's gradient is may depend on it.
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    if servers:
        environment |= {"FASTOPT_SERVERS": str(servers), "FASTOPT_SPARES": str(spares), SURVIVES: "1"}
    environment.pop(raised.DIRECTORY, None)
    with tempfile.TemporaryDirectory(prefix="fastopt-run-") as directory:
        if ranks > 1 and not hosts and not servers:  # all reach it, and end together: else each writes its own at once
            environment[raised.DIRECTORY] = directory
        while True:
            command = [*_launcher(ranks, hosts, servers > 0), *_program(program, arguments)]
            status = _wait(command, environment, listen=bool(hosts or servers))
            told = raised.take(directory)
            print(raised.report(told), end="", file=sys.stderr, flush=True)
            if status in (0, _INTERRUPTED) or not restarts or ranks == 1:
                return status
            if len(told) == ranks and not any(one.by_loss for one in told):
                print("fastopt run: all processes raised an exception, and would again: no restart", file=sys.stderr)
                return status
            restarts -= 1
            ranks -= 1
            left = "no restart is" if not restarts else f"{restarts} restart{'s are' if restarts > 1 else ' is'}"
            print(f"fastopt run: a process has failed; again with {ranks}, {left} left", file=sys.stderr, flush=True)


def _program(program: str, arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "fastopt.distributed.process", program, *arguments]


def _launcher(ranks: int, hosts: Sequence[tuple[str, int]], survives: bool = False) -> list[str]:
    """The command that starts processes: none for one alone."""
    if ranks == 1 and not hosts:
        return []
    own = Path(sysconfig.get_path("scripts")) / "mpiexec"
    found = str(own) if own.exists() else shutil.which("mpiexec")
    if found is None or find_spec("mpi4py") is None:
        missing = "mpi4py" if found else "mpiexec"
        raise BackendUnavailable(
            f"found no {missing}, which starts several processes: {install_command('distributed')}"
        )
    command = [found, "-n", str(ranks), "--bind-to", "none"]
    if os.geteuid() == 0:
        command.append("--allow-run-as-root")
    if survives:
        command += ["--with-ft", "ulfm"]
    most = ranks
    if hosts:
        most = max(slots for _, slots in hosts)
        command += ["--host", ",".join(f"{name}:{slots}" for name, slots in hosts), "--prefix", sys.prefix]
        for name, value in _SILENCE.items():
            command += ["--prtemca", name, str(value)]
        for name in _TOLD:
            command += ["-x", name] if name in os.environ or name == "OMP_NUM_THREADS" else []
        for name in ("FASTOPT_SERVERS", "FASTOPT_SPARES", SURVIVES) if survives else ():
            command += ["-x", name]
    command += ["--map-by", ":OVERSUBSCRIBE", "--mca", "osc", "^ucx"]
    if most >= len(os.sched_getaffinity(0)):
        command += ["--mca", "mpi_yield_when_idle", "1"]  # else waiting processes take the time of working ones
    return command


def _wait(command: Sequence[str], environment: dict[str, str], listen: bool) -> int:
    """Run a command to its end, which is brought about where this process is told to end.

    With `listen` it has failed where it says that it has lost a machine, or a process that it has failed: the status of
    PRRTE 3 is 0 then.
    """
    before = signal.signal(signal.SIGTERM, _end)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE if listen else None)
    try:
        told = _pass_on(process.stderr) if listen else 0
        status = process.wait() or told
    except KeyboardInterrupt:  # the launcher has had it too, from the terminal
        status = _INTERRUPTED
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(_PATIENCE)
    finally:
        _stop(process)
        signal.signal(signal.SIGTERM, before)
    return 128 - status if status < 0 else status


def _pass_on(errors: Any) -> int:
    """Write errors as they come; return the first status that one tells, which is 1 where a machine is lost."""
    told, last = 0, b""
    while some := os.read(errors.fileno(), 1 << 16):
        sys.stderr.buffer.write(some)
        sys.stderr.flush()
        last += some
        if found := re.search(rb"%b|%b(\d+)\n" % (_LOST, FAILED.encode()), last):
            told = told or int(found[1] or 1)
        last = last[-len(_LOST) - len(FAILED) :]
    return told


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Have a launcher end, and with it all processes."""
    for end, patience in ((process.terminate, _PATIENCE), (process.kill, None)):
        if process.poll() is None:
            end()
            with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                process.wait(patience)
