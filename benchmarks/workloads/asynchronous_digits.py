"""A network learns to read digits by workers that do not wait for each other: threads, processes, or actors of Ray.

python benchmarks/workloads/asynchronous_digits.py --workers 3
python benchmarks/workloads/asynchronous_digits.py --workers 3 --carrier ray
fastopt run -n 4 --servers 1 benchmarks/workloads/asynchronous_digits.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import common

try:
    import numpy as np
    from distributed_digits import BATCH, HELD_OUT, forward, gradient, images, network
    from threadpoolctl import threadpool_limits

    import fastopt
    from fastopt import distributed as fd
    from fastopt.distributed.carriers import current
except ModuleNotFoundError as missing:
    common.explain(missing)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, and print what came of it, in the first process."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--carrier", choices=["ray"], help="else threads, or the processes that fastopt run starts")
    options.add_argument("--workers", type=common.count, help="by default as many as fd.run takes")
    options.add_argument("--epochs", type=common.count, default=30, help="over the images (default %(default)s)")
    options.add_argument("--checkpoint", metavar="DIRECTORY", help="where servers save, and go on from")
    given = options.parse_args(arguments)
    x, y = images()
    rng = np.random.default_rng(0)
    params = network(rng)
    size = BATCH // 8
    orders = [rng.permutation(len(x) - HELD_OUT).reshape(-1, size) for _ in range(given.epochs)]
    batches = [batch for order in orders for batch in order]

    def worker(opt: fd.Worker) -> None:
        with threadpool_limits(1):
            for batch in opt.deal(batches):
                opt.step(gradient(opt.params, x[batch], y[batch]))

    downpour = fd.Downpour(fastopt.AdaptiveRevision, params, lr=0.2)
    result = fd.run(
        worker,
        downpour,
        carrier=given.carrier,
        workers=given.workers,
        checkpoint=given.checkpoint,
        checkpoint_every=1.0,
    )
    if current().rank == 0:
        right = (forward(result.params, x[-HELD_OUT:])[1].argmax(1) == y[-HELD_OUT:]).mean()
        late = sum(delay * times for delay, times in result.delays.items()) / max(result.pushes, 1)
        ended = f"; before their time ended {sorted(result.dead)}" if result.dead else ""
        print(
            f"{result.pushes} pushes, {late:.1f} late on average, in {result.seconds:.1f} s; "
            f"{100 * right:.1f} % of digits held out are read{ended}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
