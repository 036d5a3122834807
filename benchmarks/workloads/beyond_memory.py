"""Adam on arrays larger than memory: states, parameters and gradients in files, the process's memory limited.

The limit is that of a memory cgroup, to which the system's cache of the files counts too, where the process may make
one (as root; in version 2 of cgroups only in a group that hands memory down). Elsewhere it is RLIMIT_DATA, to which
only memory counts that has no file. States in memory meet it at once. The last two rows are the disk's own: the bytes
that a step reads and writes, of the same files, read and written back without computing; once through the system's
cache, which is made to let go of them as in a step, and once past it (O_DIRECT).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path
from statistics import median

import common

try:
    import numpy as np

    import fastopt
except ModuleNotFoundError as missing:
    common.explain(missing)

MIB = 1 << 20
BLOCK, THREADS = 8 * MIB, 4  # what the disk is asked for at once, and by how many
SETTINGS = {"lr": 0.01}
NO_MEMORY = 3  # how a process ends that gets none
BOUNDED = "state_dir, state_memory"
RUNS = {  # a process each, and what is timed in it, in turns
    "states in memory": ["step"],
    "state_dir": ["step"],
    BOUNDED: ["step"],
    "the disk": ["step", "through the cache", "past the cache"],
}


@contextmanager
def limited(limit: int) -> Iterator[Path | None]:
    """A memory cgroup with that limit; None where none can be made."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        folder, name = {"memory": ("memory", "memory.limit_in_bytes"), "": ("", "memory.max")}.get(
            controllers, ("", "")
        )
        group = Path("/sys/fs/cgroup", folder, path.lstrip("/"), f"fastopt-{os.getpid()}")
        if not name:
            continue
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / name).exists():
                (group / name).write_text(str(limit))
                yield group
                return
        finally:
            group.rmdir()
    yield None


def most(group: Path | None) -> int | None:
    """The memory that the processes of a group have had at most, in bytes."""
    for name in ("memory.max_usage_in_bytes", "memory.peak"):
        if group is not None and (group / name).exists():
            return int((group / name).read_text())
    return None


def enter(group: Path | None, limit: int) -> None:
    """Puts this process under the limit."""
    if group is None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    else:
        (group / "cgroup.procs").write_text("0")


def make_files(folder: Path, elements: int) -> None:
    """A parameter of zeros, and a gradient of random numbers, the same ones again and again."""
    block = np.random.default_rng(0).standard_normal(BLOCK // 4).astype("f4")
    for name, content in (("parameters", np.zeros_like(block)), ("gradients", block)):
        with open(folder / name, "wb") as file:
            for begin in range(0, elements, len(block)):
                file.write(content[: elements - begin])
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def regions(folder: Path) -> list[tuple[Path, int, int, bool]]:
    """Yield the regions that a step goes through together: file, begin, end, whether it is written."""
    states = (folder / "states" / "states").stat().st_size
    size = (folder / "parameters").stat().st_size
    return [
        (folder / "parameters", 0, size, True),
        (folder / "gradients", 0, size, False),
        (folder / "states" / "states", 0, states - size, True),
        (folder / "states" / "states", states - size, states, True),
    ]


def move(folder: Path, past: bool) -> None:
    """Has the disk do what a step has it do: reads every byte, writes back all but the gradients'."""
    parts = regions(folder)
    descriptors = [os.open(path, os.O_RDWR | (os.O_DIRECT if past else 0)) for path, *_ in parts]
    own = threading.local()

    def block(begin: int, part: int) -> None:
        _, first, last, written = parts[part]
        begin += first
        if begin >= last:
            return
        if not hasattr(own, "buffer"):
            own.buffer = memoryview(mmap(-1, BLOCK))
        view = own.buffer[: last - begin]
        os.preadv(descriptors[part], [view], begin)
        if written:
            os.pwritev(descriptors[part], [view], begin)
        if not past:  # begins to write it
            os.posix_fadvise(descriptors[part], begin, BLOCK, os.POSIX_FADV_DONTNEED)

    with ThreadPoolExecutor(THREADS) as pool:
        begins = range(0, max(last - first for _, first, last, _ in parts), BLOCK)
        for done in [pool.submit(block, begin, part) for begin in begins for part in range(len(parts))]:
            done.result()
    for descriptor in descriptors:
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def train(folder: Path, run: str, memory: int, rounds: int) -> dict[str, list[float]]:
    """Steps, and what else is timed with them, in turns; checks some elements against a training of these alone."""
    param = np.memmap(folder / "parameters", "f4", "r+")
    grad = np.memmap(folder / "gradients", "f4", "r")
    some = np.r_[:500, len(param) - 500 : len(param)]
    options = {} if run == "states in memory" else {"state_dir": folder / "states"}
    if run in (BOUNDED, "the disk"):
        options["state_memory"] = memory
    want, gradient = param[some], grad[some]
    alone = fastopt.Adam(want, **SETTINGS)
    optimizer = fastopt.Adam(param, **SETTINGS, **options)
    timed = {
        "step": lambda: optimizer.step(grad),
        "through the cache": lambda: move(folder, past=False),
        "past the cache": lambda: move(folder, past=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in RUNS[run]}
    for k in range(rounds + 1):  # the first is not counted: in it the files of states get their blocks
        for name in RUNS[run]:
            begin = time.perf_counter()
            timed[name]()
            if k:
                seconds[name].append(time.perf_counter() - begin)
                common.progress(f"[{k}/{rounds}] {run}: {name} {seconds[name][-1]:.2f} s")
        alone.step(gradient)
    if not np.array_equal(param[some], want):
        sys.exit(f"{run}: the parameters are not those of a training in memory")
    return seconds


def measure(options: argparse.Namespace, run: str) -> tuple[dict[str, list[float]], str, str]:
    """A training in a process of its own, under a limit: its times; its peak memory, or how it ended; whose limit."""
    arguments = ["--memory", options.memory, "--rounds", options.rounds, "--folder", options.folder, "--run", run]
    with limited(options.limit * MIB) as group:
        done = subprocess.run(
            [sys.executable, __file__, *map(str, arguments)],
            preexec_fn=lambda: enter(group, options.limit * MIB),
            stdout=subprocess.PIPE,
            check=False,
        )
        by, peak = "RLIMIT_DATA" if group is None else "a memory cgroup", most(group)
    if done.returncode in (NO_MEMORY, -signal.SIGKILL):
        return {}, "out of memory", by
    if done.returncode:
        sys.exit(done.returncode)
    seconds, resident = json.loads(done.stdout)
    return seconds, f"{(peak or resident) / MIB:.0f}", by


def run_alone(options: argparse.Namespace) -> int:
    """Run one measurement in a process of its own, for `measure`."""
    try:
        seconds = train(Path(options.folder), options.run, options.memory * MIB, options.rounds)
    except MemoryError:
        return NO_MEMORY
    print(json.dumps([seconds, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
    return 0


def _speed(seconds: float | None, moved: float, fastest: float) -> list[str]:
    if seconds is None:
        return ["", "", ""]
    return [f"{seconds:.2f}", f"{moved / seconds:.2f}", f"{100 * fastest / seconds:.0f} %"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the files, trains in each way under the limit, and prints times and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_tables(parser)
    parser.add_argument("--states", type=common.count, default=1024, help="MiB of states (default %(default)s)")
    parser.add_argument("--limit", type=common.count, default=384, help="MiB that a process may have (%(default)s)")
    parser.add_argument("--memory", type=common.count, default=128, help="MiB that is state_memory (%(default)s)")
    parser.add_argument("--rounds", type=common.count, default=5, help="steps that are timed (%(default)s)")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="on the disk (default %(default)s)")
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.run:
        return run_alone(options)
    if options.states <= options.limit:
        parser.error(f"--states: found {options.states}, expected more than the limit of {options.limit}")
    if (free := shutil.disk_usage(options.folder).free) < 2 * options.states * MIB:
        parser.error(f"--folder: found {free // MIB} MiB free for {options.folder}, expected {2 * options.states}")
    elements = options.states * MIB // 8
    with tempfile.TemporaryDirectory(dir=options.folder) as options.folder:
        common.progress(f"writing {options.states} MiB of parameters and gradients in {options.folder}")
        make_files(Path(options.folder), elements)
        try:
            os.close(os.open(Path(options.folder, "parameters"), os.O_DIRECT))
        except OSError:
            parser.error(f"--folder: found {options.folder}, expected one on a disk that can be read past the cache")
        runs = {}
        for run in RUNS:
            runs[run] = measure(options, run)
            shutil.rmtree(Path(options.folder, "states"), ignore_errors=True)

    moved = 4 * elements * 7 / 1e9  # GB: parameter, gradient and two states read, all but the gradient written
    disk = {name: median(seconds) for name, seconds in runs["the disk"][0].items()}
    fastest = min(disk["through the cache"], disk["past the cache"])
    table = []
    for run in ("states in memory", "state_dir", BOUNDED):
        seconds, peak, by = runs[run]
        middle = disk["step"] if run == BOUNDED else median(seconds["step"]) if seconds else None
        table.append([run, *_speed(middle, moved, fastest), peak])
    table += [[f"the disk, {name}", *_speed(disk[name], moved, fastest), ""] for name in RUNS["the disk"][1:]]
    common.show(
        f"Adam on {elements:,} float32 elements; in files: {options.states} MiB of states, as many of parameters and "
        f"gradients; at most {options.limit} MiB of memory ({by}), state_memory {options.memory} MiB",
        ["", "seconds a step", "GB/s read and written", "of the disk's", "peak memory, MiB"],
        table,
        f"Each step reads and writes {moved:.1f} GB. Times: medians of {options.rounds}, the last three in turns.",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
