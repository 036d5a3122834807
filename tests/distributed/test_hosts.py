"""Two machines, as network namespaces of this one: for root."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .test_mpi import ROOT, needs_mpi

HOSTS = {"fastopt-a": "10.77.0.1", "fastopt-b": "10.77.0.2"}
AGENT = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
host=$1; shift
exec ip netns exec "$host" unshare --uts bash -c "hostname $host; $*"
"""


@pytest.fixture
def machines(tmp_path):
    """Makes two, with two links, 10.77.0 and 10.77.1; returns what stands for ssh."""
    if os.geteuid() or not all(map(shutil.which, ("ip", "unshare", "hostname"))):
        pytest.skip("network namespaces need root, ip, unshare and hostname")

    def ip(*arguments, check=True):
        return subprocess.run(["ip", *arguments], check=check, capture_output=True)

    if ip("netns", "add", "fastopt-a", check=False).returncode:
        pytest.skip("network namespaces cannot be made here")
    try:
        ip("netns", "add", "fastopt-b")
        for ends in ("va", "vb"), ("wa", "wb"):
            ip(
                "link",
                "add",
                ends[0],
                "netns",
                "fastopt-a",
                "type",
                "veth",
                "peer",
                "name",
                ends[1],
                "netns",
                "fastopt-b",
            )
        for (host, address), end in zip(HOSTS.items(), "ab", strict=True):
            for device, own in ("v", address), ("w", address.replace(".77.0.", ".77.1.")):
                ip("-n", host, "addr", "add", f"{own}/24", "dev", device + end)
                ip("-n", host, "link", "set", device + end, "up")
            ip("-n", host, "link", "set", "lo", "up")
            names = Path("/etc/netns") / host / "hosts"
            names.parent.mkdir(parents=True)
            names.write_text("127.0.0.1 localhost\n" + "".join(f"{a} {name}\n" for name, a in HOSTS.items()))
        agent = tmp_path / "agent"
        agent.write_text(AGENT)
        agent.chmod(0o755)
        yield agent
    finally:
        for host in HOSTS:
            ip("netns", "del", host, check=False)
            shutil.rmtree(Path("/etc/netns") / host, ignore_errors=True)


RUN = [sys.executable, "-m", "fastopt", "run"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
INSIDE = ["ip", "netns", "exec", "fastopt-a", "unshare", "--uts", "bash", "-c", 'hostname fastopt-a; exec "$@"', "-"]


def started(agent, program, hosts, *options, link="10.77.0"):
    """A program begun on the first machine, whose messages have a link, and the launcher the first one."""
    more = {
        "PRTE_MCA_plm_ssh_agent": str(agent),
        "PRTE_MCA_oob_tcp_if_include": "10.77.0.0/24",
        "OMPI_MCA_btl_tcp_if_include": f"{link}.0/24",
    }
    command = [*INSIDE, *RUN, "--hosts", hosts, *options, program]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=ENVIRONMENT | more, cwd=agent.parent, **pipes)


PROGRAM = """
import hashlib, socket
import numpy as np
import fastopt
from fastopt import distributed as fd

params = fd.shared([np.zeros(9000, "f4"), np.ones((70, 30), "f4")])
opt = fd.Synchronous(fastopt.AdamW, params, slices=4, lr=0.1)
for step in range(3):
    for number, _ in opt.slices(4):
        rng = np.random.default_rng(10 * step + number)
        opt.add(number, [rng.standard_normal(p.shape).astype("f4") + p for p in params])
    opt.step(max_norm=1.0)
print(opt.ranks, hashlib.sha256(params[0].tobytes() + params[1].tobytes()).hexdigest(), socket.gethostname())
"""


@needs_mpi
@pytest.mark.slow
def test_two_machines_have_the_bits_of_one_process(machines, tmp_path):
    program = tmp_path / "train.py"
    program.write_text(PROGRAM)
    alone = subprocess.run([*RUN, "-n", "1", program], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    digest = alone.stdout.split()[1]
    for hosts, ranks in ("fastopt-a:1,fastopt-b:1", 2), ("fastopt-a:2,fastopt-b:2", 4):
        process = started(machines, program, hosts)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        lines = [line.split() for line in out.splitlines()]
        assert len(lines) == ranks and {tuple(line[:2]) for line in lines} == {(str(ranks), digest)}
        assert {line[2] for line in lines} == set(HOSTS)


ENDLESS = """
import numpy as np
import fastopt
from fastopt import distributed as fd

opt = fd.Synchronous(fastopt.AdamW, np.zeros(100_000, "f4"), slices=2)
while True:
    for number, _ in opt.slices(2):
        opt.add(number, np.ones(100_000, "f4"))
    opt.step()
    if opt.steps == 3:
        print("ready", flush=True)
"""


@needs_mpi
@pytest.mark.slow
def test_a_link_that_goes_down_ends_all(machines, tmp_path):
    program = tmp_path / "train.py"
    program.write_text(ENDLESS)
    process = started(machines, program, "fastopt-a:1,fastopt-b:1")
    try:
        assert process.stdout.readline() == process.stdout.readline() == "ready\n"
        subprocess.run(["ip", "-n", "fastopt-a", "link", "set", "va", "down"], check=True)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1 and "lost communication" in err
    finally:
        process.kill()
    for _ in range(60):  # the other machine finds it out by itself
        left = [subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True).stdout for host in HOSTS]
        if left == ["", ""]:
            break
        time.sleep(0.5)
    assert left == ["", ""]


TWO_LINES = """
import os, sys, time, types
import numpy as np
import fastopt
from fastopt import distributed as fd
from fastopt.distributed import mpi

# Of four ranks the server shall be on the other machine, which has the last one: it and the spare change places.
every = mpi._load()
own = {name: getattr(every, name) for name in dir(every)}
own["COMM_WORLD"] = every.COMM_WORLD.Split(0, [0, 1, 3, 2][every.COMM_WORLD.rank])
world = mpi.Processes(types.SimpleNamespace(**own))
mpi.world_of_processes = lambda: world

def worker(opt):
    n = 0
    while n < 400 and not (os.path.exists("stopped") and os.path.exists("states/shard-0/epoch-2/latest")):
        grad = np.zeros((2, 400), "f4")
        grad[opt.rank, n] = -1
        opt.step(grad)
        n += 1
        if n == 20 and opt.rank == 0:
            print("ready", flush=True)
        time.sleep(0.02)

# Each side hears nothing of the other from the same moment on. The server waits longer: it shall still serve when the
# spare takes over, instead of giving up all workers at that time.
try:
    result = fd.run(worker, fd.Downpour(fastopt.SGD, np.zeros((2, 400), "f4"), lr=1.0), checkpoint="states",
                    checkpoint_every=0.2, timeout=4 if world.rank == 2 else 1.5)
except fd.RankDied as error:
    with open("stopped", "w") as file:
        file.write(f"{world.rank} {error}")
else:
    missing = sum(x.nonzero()[0][-1] + 1 - x.sum() for x in result.params)
    print(world.rank, result.dead, int(missing) - result.lost, int(result.params.max()))
"""


@needs_mpi
@pytest.mark.slow
def test_a_cut_link_leaves_one_line_of_states(machines, tmp_path):
    """Where the launcher reaches both machines, and messages only one: a spare takes over, and the old server stops."""
    program = tmp_path / "train.py"
    program.write_text(TWO_LINES)
    options = "--servers", "1", "--spares", "1"
    process = started(machines, program, "fastopt-a:3,fastopt-b:1", *options, link="10.77.1")
    try:
        assert process.stdout.readline() == "ready\n"
        subprocess.run(["ip", "-n", "fastopt-a", "link", "set", "wa", "down"], check=True)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert sorted(out.splitlines()) == ["0 {} 0 1", "1 {} 0 1", "3 {} 0 1"], err
    assert (tmp_path / "stopped").read_text().startswith("2 found another server of states/shard-0, expected none")
    assert [path.name for path in (tmp_path / "states" / "shard-0").glob("epoch-*")] == ["epoch-2"]
