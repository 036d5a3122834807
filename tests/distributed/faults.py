"""Faults in a row, in runs of workers, servers and spares: ``python -m tests.distributed.faults 200 [SEED]``.

Each run is a program of eight processes, of which some are killed, exit, are stopped for a while or for good, or fail
by an exception, at named points. Each gradient is of an element and of a table's row of its own, so that what a server
applied never, once or twice is seen.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .test_launch import MARK, marked
from .test_mpi import ROOT

WORKERS, SERVERS, SPARES, STEPS = 3, 2, 3, 40
#: Where faults come, and in whose process.
POINTS = {
    "before a push": range(1, WORKERS),
    "between applying and replying": range(WORKERS, WORKERS + SERVERS),
    "in a checkpoint": range(WORKERS, WORKERS + SERVERS),
    "in a takeover": range(WORKERS + SERVERS, WORKERS + SERVERS + SPARES),
}
PROGRAM = """
import json, os, signal, subprocess, sys, time
import numpy as np
import fastopt
from fastopt import distributed as fd
from fastopt.distributed import carriers, checkpoint, client, server, shelf

WHERE = {
    "before a push": (client.Client, "ask"),
    "between applying and replying": (server.Server, "_reply"),
    "in a checkpoint": (checkpoint, "_write_shard"),
    "in a takeover": (shelf.Shelf, "load"),
}
rank = carriers.current().rank
workers, servers, steps = json.loads(sys.argv[2])

def prepare(point, fault, count):
    owner, name = WHERE[point]
    before, calls = getattr(owner, name), [0]
    def faulty(*arguments):
        calls[0] += 1
        if calls[0] == count:
            open(f"fault-{rank}-{point}", "w").close()
            if fault == "raises":
                raise ZeroDivisionError("by this test")
            if fault == "exits":
                os._exit(3)
            if fault == "stops":  # else, where it hangs, nobody wakes it
                subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGKILL if fault == "is killed" else signal.SIGSTOP)
        return before(*arguments)
    setattr(owner, name, faulty)

for who, point, fault, count in json.loads(sys.argv[1]):
    if who == rank:
        prepare(point, fault, count)

def worker(opt):
    for k in opt.deal(range(steps * workers)):
        assert opt.fetch_rows("table", [k, k]).max() == 0
        grads = {name: np.zeros(steps * workers, "f4") for name in ("first", "last")}
        for g in grads.values():
            g[k] = -1
        opt.step({**grads, "table": fastopt.RowSparse([k, k], np.full((2, 2), -0.5, "f4"))})
        time.sleep(0.005)

n = steps * workers
# Of two servers one has the first half of the table beside it, and one the other.
params = {"first": np.zeros(n, "f4"), "table": np.zeros((n, 2), "f4"), "last": np.zeros(n, "f4")}
downpour = fd.Downpour(fastopt.SGD, params, lr=1.0, tables={"table": 2})
result = fd.run(worker, downpour, checkpoint="states", checkpoint_every=0.03, timeout=5.0)
vectors = result.params["first"], result.params["last"]
applied = [x.reshape(steps, workers).sum(0).astype(int).tolist() for x in vectors]
rows = np.concatenate([vectors[0][: n // 2], vectors[1][n // 2 :]])
found = {
    "dead": sorted(result.dead),
    "lost": result.lost,
    "applied": applied,
    "most": max(float(x.max()) for x in vectors),
    "rows": bool((result.params["table"].T == rows).all()),
}
with open(f"result-{rank}", "w") as file:
    json.dump(found, file)
"""


def run(plan, folder, timeout=90):
    """Run the program with faults; return what each process found, the status, and what was printed."""
    options = ["-n", str(WORKERS + SERVERS + SPARES), "--servers", str(SERVERS), "--spares", str(SPARES)]
    return run_program(PROGRAM, [json.dumps(plan), json.dumps([WORKERS, SERVERS, STEPS])], folder, options, timeout)


def run_program(text, arguments, folder, options, timeout=90):
    """Run a program of several processes; return what each found, the status, and what was printed."""
    path = Path(folder) / "train.py"
    path.write_text(text)
    command = [sys.executable, "-m", "fastopt", "run", *options, str(path), *arguments]
    environment = {**os.environ, MARK: str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate()
        raise
    found = {int(path.name.rpartition("-")[2]): json.loads(path.read_text()) for path in Path(folder).glob("result-*")}
    return found, process.returncode, out + err


def check(plan, folder, found, status, err):
    """Check that what is promised holds; return the number of faults there were."""
    happened = [fault for fault in plan if (Path(folder) / f"fault-{fault[0]}-{fault[1]}").exists()]
    ends = "is killed", "exits", "hangs"
    ended = {who for who, _, fault, _ in happened if fault in ends or (fault == "raises" and who >= WORKERS)}
    dead = sorted({who for who, _, fault, _ in happened if who < WORKERS and fault != "stops"})
    assert sorted(found) == sorted({*range(WORKERS + SERVERS + SPARES)} - ended), (status, err)
    own = found[0]
    assert all(theirs == own for theirs in found.values()), found
    assert own["dead"] == dead, (own, dead)
    assert own["most"] == 1, "a push was applied twice"
    assert own["rows"], "a server has a push of a vector, and not of its rows, or the other way round"
    missing = sum(STEPS - n for applied in own["applied"] for k, n in enumerate(applied) if k not in dead)
    assert missing == own["lost"] or (dead and missing <= own["lost"]), own
    if not any(who >= WORKERS and fault != "stops" for who, _, fault, _ in happened):
        assert own["lost"] == 0
    failed = any(fault == "exits" or (fault == "raises" and who >= WORKERS) for who, _, fault, _ in happened)
    assert (status != 0) == failed, (status, err)
    assert marked(folder) == []
    return len(happened)


def plan_of(chance):
    """Some faults, after which a worker, and a rank for each shard, are left."""
    ends = ["is killed", "exits", "hangs"]
    plan = []
    for who in range(1, WORKERS):
        if chance.random() < 0.6:
            plan.append((who, "before a push", chance.choice([*ends, "stops", "raises"]), chance.randint(3, 40)))
    for who in range(WORKERS, WORKERS + SERVERS):
        if chance.random() < 0.8:
            point = chance.choice(["between applying and replying", "in a checkpoint"])
            count = chance.randint(1, 100) if point.startswith("between") else chance.randint(1, 8)
            plan.append((who, point, chance.choice([*ends, "stops", "raises"]), count))
    first = WORKERS + SERVERS
    if chance.random() < 0.5:
        plan.append((chance.randrange(first, first + SPARES), "in a takeover", chance.choice(ends), 1))
    return plan


def main(faults, seed):
    chance, done, runs, began = random.Random(seed), 0, 0, time.perf_counter()
    while done < faults:
        plan = plan_of(chance)
        with tempfile.TemporaryDirectory() as folder:
            try:
                done += check(plan, folder, *run(plan, folder))
            except BaseException:
                print("the plan was", json.dumps(plan), file=sys.stderr)
                raise
        runs += 1
        print(f"{done} faults in {runs} runs, {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
