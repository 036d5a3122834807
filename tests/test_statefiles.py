"""States in files: what a directory holds, whose it is, and what it says after a crash."""

import errno
import fcntl
import gc
import json
import math
import os
import resource
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from fastopt.files import statefiles
from fastopt.files.paging import LEAST, SLOTS, SPARE
from fastopt.files.statefiles import ParameterStates, StateArray, StateFiles

from .support import assert_same_bits

F4, F8, U1 = np.dtype("f4"), np.dtype("f8"), np.dtype("u1")
BOUNDS = [
    None,
    pytest.param(SLOTS * LEAST + SPARE, marks=pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")),
]


def adam(*shape, dtype=F4, rule="adam"):
    return ParameterStates(rule, shape, tuple(StateArray(name, str(dtype), dtype, shape) for name in ("m", "v")))


def counters(n=1):
    return [np.zeros(n, np.int64), np.ones((n, 2))]


def open_files(folder, parameters=None, counts=None, memory=None):
    parameters = [adam(300), adam(2, 3, dtype=F8)] if parameters is None else parameters
    return StateFiles(folder, parameters, counters(len(parameters)) if counts is None else counts, memory)


def step(files, counts):
    """All states and counters one higher."""

    def work():
        for arrays in files.arrays:
            for array in arrays.values():
                array += 1
        counts[0] += 1
        counts[1] *= 0.5

    files.update(work)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def python(code, *arguments, status=0):
    """Runs code in a new process, which is to end with that status, and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stdout


# ---- keeping and resuming ----


@pytest.mark.parametrize("memory", BOUNDS)
def test_round_trip(tmp_path, memory):
    shapes = [(), (1,), (0, 4), (7,), (513, 1001), (3, 4, 5)]
    parameters = [adam(*shape, dtype=dtype) for shape in shapes for dtype in (F4, F8)]
    parameters.append(ParameterStates("sgd", (5,), ()))
    parameters.append(ParameterStates("lion", (600,), (StateArray("m", "8bit", U1, (780,)),)))
    counts = counters(len(parameters))
    files = open_files(tmp_path / "deep" / "states", parameters, counts, memory)
    assert not files.resumed
    assert [[(name, array.shape, array.dtype) for name, array in arrays.items()] for arrays in files.arrays] == [
        [(s.name, s.shape, s.dtype) for s in parameter.states] for parameter in parameters
    ]
    for arrays in files.arrays:
        for array in arrays.values():
            assert not array.any() and array.flags.c_contiguous and array.ctypes.data % 64 == 0
    rng = np.random.default_rng(0)
    states = [array for arrays in files.arrays for array in arrays.values()]
    kept = [rng.integers(0, 255, array.shape).astype(array.dtype) for array in states]

    def work():
        for array, value in zip(states, kept, strict=True):
            array[...] = value
        counts[0][:] = np.arange(len(parameters))
        counts[1][:] = np.pi

    files.update(work)
    files.close()
    again = counters(len(parameters))
    files = open_files(tmp_path / "deep" / "states", parameters, again, memory)
    assert files.resumed
    assert_same_bits([array for arrays in files.arrays for array in arrays.values()], kept)
    assert_same_bits(again, counts)


@pytest.mark.parametrize("memory", BOUNDS)
def test_what_states_begin_at(tmp_path, memory):
    rng = np.random.default_rng(0)
    param = np.asfortranarray(rng.standard_normal((300, 700)).astype("f4"))
    turned = rng.standard_normal((20, 30, 40)).astype("f4").transpose(1, 2, 0)[::2]
    states = (
        StateArray("sum", "float32", F4, param.shape, 0.25),
        StateArray("ema", "float64", F8, param.shape, param),
        StateArray("master", "float32", F4, param.shape, param, order=(1, 0)),
        StateArray("turned", "float32", F4, turned.shape, turned, order=(2, 0, 1)),
        StateArray("number", "float32", F4, (), np.array(3.0)),
    )
    counts = counters()
    counts[0][:] = 41
    files = open_files(tmp_path / "s", [ParameterStates("any", param.shape, states)], counts, memory)
    got = files.arrays[0]
    assert (got["sum"] == 0.25).all() and got["number"] == 3
    assert_same_bits([got["ema"], got["master"], got["turned"]], [param.astype("f8"), param, turned])
    assert got["master"].flags.f_contiguous and got["turned"].strides == (160, 4, 2400)
    assert got["turned"].shape == turned.shape
    files.update(lambda: files.write(0, "master", got["ema"] + 1))
    assert_same_bits([got["master"]], [(param.astype("f8") + 1).astype("f4")])
    files.close()
    counts[0][:] = 0
    assert open_files(tmp_path / "s", [ParameterStates("any", param.shape, states)], counts).resumed
    assert counts[0] == 41


def test_all_room_is_taken_at_once(tmp_path, monkeypatch):
    """Also where the system has no function for it, or the file system none behind it."""
    size = 1 << 21
    for k, fail in enumerate((None, errno.EOPNOTSUPP, errno.EINVAL, AttributeError)):

        def refuse(descriptor, offset, length, fail=fail):
            raise AttributeError if fail is AttributeError else OSError(fail, os.strerror(fail))

        if fail is not None:
            monkeypatch.setattr(os, "posix_fallocate", refuse)
        open_files(tmp_path / str(k), [adam(size // 8)])
        status = (tmp_path / str(k) / "states").stat()
        assert size <= 512 * status.st_blocks <= 1.1 * size + 65536 and status.st_size >= size


# ---- what is refused ----

GOOD = [adam(300), adam(2, 3, dtype=F8)]
OTHERS = {
    "rule": ([adam(300, rule="adamw"), GOOD[1]], r"parameters\[0\]\.rule 'adam', expected 'adamw'"),
    "shape": ([GOOD[0], adam(3, 2, dtype=F8)], r"parameters\[1\]\.shape \[2, 3\], expected \[3, 2\]"),
    "kind": ([adam(300, dtype=F8), GOOD[1]], r"parameters\[0\]\.states\[0\]\.kind 'float32', expected 'float64'"),
    "fewer": (GOOD[:1], "number of parameters 2, expected 1"),
    "more": ([*GOOD, adam(1)], "number of parameters 2, expected 3"),
    "states": (
        [replace(GOOD[0], states=GOOD[0].states[:1]), GOOD[1]],
        r"number of parameters\[0\]\.states 2, expected 1",
    ),
    "name": (
        [replace(GOOD[0], states=(replace(GOOD[0].states[0], name="w"), GOOD[0].states[1])), GOOD[1]],
        r"parameters\[0\]\.states\[0\]\.name 'm', expected 'w'",
    ),
    "order": (
        [GOOD[0], replace(GOOD[1], states=tuple(replace(s, order=(1, 0)) for s in GOOD[1].states))],
        r"parameters\[1\]\.states\[0\]\.order None, expected \[1, 0\]",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_states_of_others_are_refused(tmp_path, other):
    counts = counters(2)
    files = open_files(tmp_path, GOOD, counts)
    step(files, counts)
    files.close()
    before = contents(tmp_path)
    parameters, said = OTHERS[other]
    with pytest.raises(ValueError, match=rf"state_dir: found states in {tmp_path} with {said}.*remove this one"):
        open_files(tmp_path, parameters)
    assert contents(tmp_path) == before
    assert open_files(tmp_path, GOOD).resumed


def change(key, value):
    def edit(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest[key] = value
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return edit


def place(name, form, *values, begin=0):
    """Packs numbers into a file."""

    def edit(folder):
        with open(folder / name, "r+b") as file:
            file.seek(begin)
            file.write(struct.pack(form, *values))

    return edit


DAMAGES = {
    "format": (change("format", 99), "in format 99, of fastopt .*, expected format 1; use that version"),
    "byte order": (change("byteorder", "middle"), f"with byteorder 'middle', expected '{sys.byteorder}'"),
    "no json": (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json .* that is not fastopt's"),
    "other json": (lambda folder: (folder / "manifest.json").write_text("[1]"), "that is not fastopt's"),
    "unfinished": (lambda folder: (folder / "manifest.json").unlink(), r"progress, states and no manifest\.json"),
    "cut off": (lambda folder: os.truncate(folder / "states", 99), r"99 bytes in .*states, expected 4096"),
    "deep": (lambda folder: (folder / "manifest.json").write_text("[" * 10**5), "that is not fastopt's"),
    "huge": (lambda folder: os.truncate(folder / "manifest.json", 1 << 40), "that is not fastopt's"),
    "no text": (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe{}"), "that is not fastopt's"),
    "many digits": (lambda folder: (folder / "manifest.json").write_text("9" * 5000), "that is not fastopt's"),
    "long": (change("byteorder", "x" * 10**5), f"byteorder 'x.{{,200}}, expected '{sys.byteorder}'"),
    **{
        f"count {value}": (place("states", "<q", value), rf"step count, or what goes with it, of {value}")
        for value in (-5, -(2**63), 2**62)
    },
    **{
        f"scalar {value}": (place("states", "<d", value, begin=64), rf"step count, or what goes with it, of {value}")
        for value in (-1.0, math.nan, math.inf)
    },
    "marks": (place("progress", "<qqq", -1, -1, -1), "after update -1, synced after -1"),
    "a mark": (place("progress", "<qqq", 0, 0, 7), "after update 0, synced after 7"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damages_are_refused(tmp_path, damage):
    open_files(tmp_path).close()
    edit, said = DAMAGES[damage]
    edit(tmp_path)
    before = contents(tmp_path) if damage != "huge" else None
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"state_dir: found .*{said}"):
            open_files(tmp_path)
    if before is not None:
        assert contents(tmp_path) == before


NAMES = ("states", "progress", "manifest.json")


@pytest.mark.parametrize(
    ("kind", "called"),
    [
        ("symbolic link", "a symbolic link"),
        ("hard link", r"a file of several names \(hard links\)"),
        ("FIFO", "a special file"),
        ("socket", "a special file"),
        ("directory", "a directory"),
        ("device", "a special file"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_file_of_its_own_is_refused(tmp_path, name, kind, called):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    open_files(folder).close()
    (folder / name).rename(elsewhere)
    before = elsewhere.read_bytes()
    if kind == "symbolic link":
        (folder / name).symlink_to(elsewhere)
    elif kind == "hard link":
        os.link(elsewhere, folder / name)
    elif kind == "FIFO":
        os.mkfifo(folder / name)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(folder / name))
    elif kind == "directory":
        (folder / name).mkdir()
    else:
        if os.getuid():
            pytest.skip("only root makes devices")
        os.mknod(folder / name, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    with pytest.raises(ValueError, match=rf"state_dir: found {called} at {folder / name}, expected a file of its own"):
        open_files(folder)
    assert elsewhere.read_bytes() == before


@pytest.mark.parametrize("name", NAMES)
def test_a_link_in_a_new_directory_is_not_followed(tmp_path, name):
    (tmp_path / "thesis.tex").write_text("dear reader")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / name).symlink_to(tmp_path / "thesis.tex")
    with pytest.raises(ValueError, match="state_dir: found"):
        open_files(tmp_path / "new")
    assert (tmp_path / "thesis.tex").read_text() == "dear reader"


def test_a_name_that_is_no_text(tmp_path):
    (tmp_path / os.fsdecode(b"\xff")).touch()
    with pytest.raises(ValueError, match=r"found \\udcff and no manifest") as refused:
        open_files(tmp_path)
    str(refused.value).encode()


@pytest.mark.parametrize("path", ["", b"", "a\0b"])
def test_paths_that_are_none(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"state_dir: found .*, expected the path of a directory"):
        open_files(path)
    assert not list(tmp_path.iterdir())


def test_every_kind_of_path(tmp_path):
    for path in (tmp_path, str(tmp_path), os.fsencode(tmp_path)):
        open_files(path).close()
    name = os.path.join(os.fsencode(tmp_path), b"in", b"\xff")
    open_files(name).close()
    assert open_files(name).resumed


def test_no_inode_left(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for module, name in ((os, "open"), (os, "mkdir")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, refuse)
            with pytest.raises(OSError, match=r"state_dir: found no room for .*inodes") as refused:
                open_files(tmp_path / "new" / "folder")
        assert refused.value.errno == errno.ENOSPC
        assert not list(tmp_path.iterdir())


def test_another_version_of_fastopt_is_not_refused(tmp_path):
    open_files(tmp_path).close()
    change("fastopt", "0.0.1")(tmp_path)
    assert open_files(tmp_path).resumed


def test_a_missing_file(tmp_path):
    open_files(tmp_path).close()
    (tmp_path / "progress").unlink()
    with pytest.raises(FileNotFoundError, match=f"state_dir: found {tmp_path}"):
        open_files(tmp_path)


def test_a_directory_with_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear reader")
    with pytest.raises(ValueError, match=r"state_dir: found thesis\.tex and no manifest\.json"):
        open_files(tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"dear reader"}
    with pytest.raises(FileExistsError, match=r"state_dir: found .*, expected a directory that can be written"):
        open_files(tmp_path / "thesis.tex")
    for bad in (3, None, [tmp_path]):
        with pytest.raises(TypeError, match=r"state_dir: found .* expected a path"):
            open_files(bad)


def test_a_directory_is_one_optimizers(tmp_path):
    files = open_files(tmp_path)
    code = "import sys; from tests.test_statefiles import open_files; open_files(sys.argv[1])"
    with pytest.raises(ValueError, match="in use by another optimizer"):
        open_files(tmp_path)
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert "in use by another optimizer" in done.stderr
    files.close()
    files.close()
    with pytest.raises(ValueError, match="closed, expected it open"):
        files.update(lambda: None)
    with pytest.raises(ValueError, match="closed, expected it open"):
        files.sync()
    array = files.arrays[0]["m"]  # keeps the map
    files = open_files(tmp_path)
    assert files.resumed
    files.itself = files
    del files  # without close(), and in a cycle
    assert open_files(tmp_path).resumed and array[0] == 0


def test_file_systems_without_locks(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    open_files(tmp_path).close()
    assert open_files(tmp_path).resumed


def test_a_directory_that_cannot_be_written(tmp_path):
    if os.getuid():
        tmp_path.chmod(0o500)
        folders = [tmp_path, tmp_path / "new"]
    else:  # whom no mode keeps out
        folders = ["/proc/self/new", "/sys/new"]
    for folder in folders:
        with pytest.raises(OSError, match=rf"state_dir: found {folder}, expected a directory that can be written"):
            open_files(folder, [adam(3)])
    tmp_path.chmod(0o700)


def test_a_full_disk(tmp_path):
    """A limit on the size of files stands for it: the system refuses at the same place."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        for folder in (tmp_path / "new", tmp_path):
            with pytest.raises(OSError, match=r"state_dir: found \d+ bytes free for .*, expected 2404352 for the st"):
                open_files(folder, [adam(300_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
    assert not open_files(tmp_path, [adam(300_000)]).resumed


def test_a_disk_that_is_full_indeed(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("this process may mount no disk")
    try:
        with pytest.raises(OSError, match=r"found \d+ bytes free .*, expected 2404352 .* \(No space left") as caught:
            open_files(tmp_path / "new", [adam(300_000)])
        assert caught.value.errno == errno.ENOSPC
        assert not list(tmp_path.iterdir())
        open_files(tmp_path / "new", [adam(3000)]).close()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("at", ["open", "mmap", "rename"])
def test_what_was_made_is_removed(tmp_path, monkeypatch, at):
    def fail(*arguments, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    real = os.open
    if at == "open":  # the second file
        monkeypatch.setattr(os, "open", lambda path, *rest: fail() if "progress" in str(path) else real(path, *rest))
    elif at == "mmap":
        monkeypatch.setattr(statefiles.mmap, "mmap", fail)
    else:
        monkeypatch.setattr(statefiles.Path, "rename", fail)
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    for folder in (tmp_path / "new", tmp_path):
        with pytest.raises(OSError, match=r"state_dir: found .*Too many open files"):
            open_files(folder)
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())
    gc.collect()
    assert len(os.listdir("/dev/fd")) == before
    open_files(tmp_path)


# ---- crashes ----

UPDATES = """
import os, signal, sys
import numpy as np
from tests.test_statefiles import adam, counters, open_files, step
counts = counters(2)
files = open_files(sys.argv[1], counts=counts)
def broken():
    files.arrays[0]["m"][:150] += 1
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_killed_between_steps_leaves_whole_states(tmp_path):
    python(UPDATES + "for _ in range(3): step(files, counts)\nos.kill(os.getpid(), 9)", tmp_path / "s", status=-9)
    counts = counters(2)
    files = open_files(tmp_path / "s", counts=counts)
    assert files.resumed
    for array in (array for arrays in files.arrays for array in arrays.values()):
        assert (array == 3).all()
    assert (counts[0] == 3).all() and (counts[1] == 0.125).all()
    step(files, counts)


def test_a_process_killed_within_a_step_is_found_out(tmp_path):
    folder = tmp_path / "s"
    python(UPDATES + "step(files, counts)\nfiles.update(broken)", folder, status=-9)
    before = contents(folder)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"a part has update 2, and a part only update 1: .* remove the directory"):
            open_files(folder)
    assert contents(folder) == before


def test_a_process_killed_at_any_time(tmp_path):
    """The resumed states are whole."""
    parameters = [adam(100_000), adam(100_000)]
    code = UPDATES.replace("sys.argv[1],", "sys.argv[1], [adam(100_000), adam(100_000)],")
    code += "print(flush=True)\nwhile True: step(files, counts)"
    rng = np.random.default_rng()
    whole = broken = 0
    for k in range(100):
        folder = tmp_path / str(k)
        with subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE) as process:
            process.stdout.read(1)
            time.sleep(rng.uniform(0, 0.01))
            process.kill()
        counts = counters(2)
        try:
            files = open_files(folder, parameters, counts)
        except ValueError as error:
            assert "the process ended in the middle of it" in str(error)
            broken += 1
        else:
            for array in (array for arrays in files.arrays for array in arrays.values()):
                assert (array == counts[0][0]).all()
            assert (counts[1] == 0.5 ** counts[0][0]).all()
            whole += 1
        if k >= 5 and whole and broken:
            break
    assert whole and broken


def test_a_process_killed_while_it_makes_states(tmp_path):
    code = """
import os, sys
from fastopt.files import statefiles
from tests.test_statefiles import open_files
statefiles.StateFiles._fill = lambda *arguments: os.kill(os.getpid(), 9)
open_files(sys.argv[1])
"""
    python(code, tmp_path / "s", status=-9)
    with pytest.raises(ValueError, match=r"found progress, states and no manifest\.json .* made to the end"):
        open_files(tmp_path / "s")


def test_a_step_that_fails(tmp_path):
    counts = counters(2)
    files = open_files(tmp_path, counts=counts)

    def fail():
        files.arrays[0]["m"][:5] = 1
        raise OSError(errno.EIO, "the disk is on fire")

    with pytest.raises(OSError, match="the disk is on fire"):
        files.update(fail)
    for call in (lambda: step(files, counts), files.sync):
        with pytest.raises(ValueError, match=r"an update left half changed \(.*the disk is on fire\); remove"):
            call()
    files.close()
    with pytest.raises(ValueError, match="the process ended in the middle of it"):
        open_files(tmp_path)


def crash(folder, to):
    """Copies the files as a process leaves them that is killed now."""
    to.mkdir()
    for name, content in contents(folder).items():
        (to / name).write_bytes(content)


def test_a_system_that_fails(tmp_path, monkeypatch):
    """After another boot only what was synced is whole."""
    counts = counters(2)
    monkeypatch.setattr(statefiles, "_boot", lambda: b"first")
    files = open_files(tmp_path / "files", counts=counts)
    crash(tmp_path / "files", tmp_path / "new")
    step(files, counts)
    step(files, counts)
    crash(tmp_path / "files", tmp_path / "never synced")
    files.sync()
    crash(tmp_path / "files", tmp_path / "synced")
    step(files, counts)
    crash(tmp_path / "files", tmp_path / "killed")
    crash(tmp_path / "files", tmp_path / "no longer synced")
    files.close()
    crash(tmp_path / "files", tmp_path / "closed")
    assert open_files(tmp_path / "killed").resumed  # and now closed
    monkeypatch.setattr(statefiles, "_boot", lambda: b"second")
    for name, last, done in (("never synced", 0, 2), ("no longer synced", 2, 3)):
        for _ in range(2):  # a refusal vouches for nothing
            with pytest.raises(ValueError, match=f"synced after update {last}, but not after {done}, before this mach"):
                open_files(tmp_path / name)
    for name, updates in (("new", 0), ("synced", 2), ("closed", 3), ("killed", 3)):
        counts = counters(2)
        files = open_files(tmp_path / name, counts=counts)
        assert (counts[0] == updates).all() and (files.arrays[0]["v"] == updates).all()
        step(files, counts)
        files.close()
        assert open_files(tmp_path / name).resumed


def test_what_is_on_the_disk_first(tmp_path, monkeypatch):
    """A step waits for the disk only after a sync: until it is known there that the states are changing."""
    counts = counters(2)
    files = open_files(tmp_path, counts=counts)
    events, real = [], os.fsync

    def fsync(descriptor):
        events.append(os.path.basename(os.readlink(f"/dev/fd/{descriptor}")))
        if events[-1] == "progress":
            events.append({name: int(files._marks[name]) for name in ("begun", "done", "synced")})
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    files.update(lambda: events.append("work"))
    assert events == ["progress", {"begun": 1, "done": 0, "synced": 0}, "work"]
    events.clear()
    files.update(lambda: events.append("work"))
    assert events == ["work"]
    events.clear()
    files.sync()
    assert events == ["states", "progress", {"begun": 2, "done": 2, "synced": 2}]
    events.clear()
    files.sync()
    assert not events
    files.update(lambda: events.append("work"))
    assert events == ["progress", {"begun": 3, "done": 2, "synced": 2}, "work"]


def test_the_systems_boot():
    boot = statefiles._boot()
    assert boot == statefiles._boot() and len(boot) <= statefiles._MARKS["boot"].itemsize
    assert len(boot) == 36 or sys.platform != "linux"


# ---- processes ----


def test_a_fork_has_no_part_in_it(tmp_path):
    counts = counters(2)
    files = open_files(tmp_path, counts=counts)
    step(files, counts)
    synced = int(files._marks["synced"])
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            files.update(lambda: None)
        except ValueError as error:
            status = 0 if "of which this one is a fork" in str(error) else 2
        files.close()
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert int(files._marks["synced"]) == synced == 0
    with pytest.raises(ValueError, match="in use by another optimizer"):
        open_files(tmp_path)
    step(files, counts)


def test_an_end_without_close_is_synced(tmp_path):
    python(UPDATES + "step(files, counts)", tmp_path / "s")
    marks = np.frombuffer((tmp_path / "s" / "progress").read_bytes(), statefiles._MARKS, 1)
    assert marks[["begun", "done", "synced"]].tolist() == [(1, 1, 1)]


def test_an_interrupt_leaves_whole_updates(tmp_path):
    """Signals' handlers run in the main thread; what they raise comes after the update."""
    out = python(
        UPDATES
        + """
import threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
armed = threading.Event()
def interrupt():
    while True:
        armed.wait()
        armed.clear()
        time.sleep(0.003)
        os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
caught = 0
while caught < 50:
    try:
        armed.set()
        while True:
            step(files, counts)
    except KeyboardInterrupt:
        caught += 1
        with files._busy:
            done = int(files._marks["done"])
            assert files._marks["begun"] == done and (counts[0] == done).all()
            for arrays in files.arrays:
                for array in arrays.values():
                    assert (array == done).all()
print("whole", caught, done > caught)
""",
        tmp_path / "s",
    )
    assert out.split() == ["whole", "50", "True"]
    assert open_files(tmp_path / "s").resumed


def test_updates_and_syncs_wait_for_each_other(tmp_path):
    files = open_files(tmp_path)
    begun, go_on = threading.Event(), threading.Event()
    events = []

    def work():
        begun.set()
        go_on.wait(60)
        events.append("updated")

    threads = [threading.Thread(target=files.update, args=(work,))]
    threads += [
        threading.Thread(target=lambda: [files.sync(), events.append("synced")]),
        threading.Thread(target=files.update, args=(lambda: events.append("updated"),)),
    ]
    for thread in threads:
        thread.start()
        begun.wait(60)
    time.sleep(0.05)
    assert not events
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert events[0] == "updated" and sorted(events) == ["synced", "updated", "updated"]


def test_no_thread_to_be_had(tmp_path, monkeypatch):
    """Then nothing has changed."""
    counts = counters(2)
    files = open_files(tmp_path, counts=counts)

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        step(files, counts)
    monkeypatch.undo()
    step(files, counts)
    assert (counts[0] == 1).all() and int(files._marks["done"]) == 1
