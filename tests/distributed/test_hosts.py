"""Two machines, as network namespaces of this one: for root."""

import os
import shutil
import subprocess
import sys
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
    """Makes two; returns what stands for ssh."""
    if os.geteuid() or not all(map(shutil.which, ("ip", "unshare", "hostname"))):
        pytest.skip("network namespaces need root, ip, unshare and hostname")

    def ip(*arguments, check=True):
        return subprocess.run(["ip", *arguments], check=check, capture_output=True)

    if ip("netns", "add", "fastopt-a", check=False).returncode:
        pytest.skip("network namespaces cannot be made here")
    try:
        ip("netns", "add", "fastopt-b")
        ip("link", "add", "va", "netns", "fastopt-a", "type", "veth", "peer", "name", "vb", "netns", "fastopt-b")
        for (host, address), device in zip(HOSTS.items(), ("va", "vb"), strict=True):
            ip("-n", host, "addr", "add", f"{address}/24", "dev", device)
            ip("-n", host, "link", "set", device, "up")
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
    run = [sys.executable, "-m", "fastopt", "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    alone = subprocess.run([*run, "-n", "1", program], env=environment, capture_output=True, text=True, check=True)
    digest = alone.stdout.split()[1]
    environment |= {"PRTE_MCA_plm_ssh_agent": str(machines), "OMPI_MCA_btl_tcp_if_include": "10.77.0.0/24"}
    inside = [
        "ip",
        "netns",
        "exec",
        "fastopt-a",
        "unshare",
        "--uts",
        "bash",
        "-c",
        'hostname fastopt-a; exec "$@"',
        "-",
    ]
    for hosts, ranks in ("fastopt-a:1,fastopt-b:1", 2), ("fastopt-a:2,fastopt-b:2", 4):
        command = [*inside, *run, "--hosts", hosts, program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in done.stdout.splitlines()]
        assert len(lines) == ranks and {tuple(line[:2]) for line in lines} == {(str(ranks), digest)}
        assert {line[2] for line in lines} == set(HOSTS)
