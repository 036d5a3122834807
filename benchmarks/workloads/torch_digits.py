"""A small transformer learns to read digits, once with torch.optim.AdamW(fused=True), once with fastopt.torch.AdamW.

Both trainings start from the same weights, see the same batches and advance in turns, batch by batch, so that a machine
that slows down slows both. Their losses agree up to rounding; the time compared is that of step() alone.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import mean, median
from time import perf_counter

import common

try:
    import torch
    from sklearn.datasets import load_digits
    from torch import nn
    from torch.nn.functional import cross_entropy

    import fastopt
    import fastopt.torch
except ModuleNotFoundError as missing:
    common.explain(missing)

BATCH = 64
HELD_OUT = 360  # of 1797
THREADS = 2
LR = 2e-3


class Network(nn.Module):
    """A transformer to which an image's eight rows are eight words.

    With GELU: at a ReLU's kink rounding decides, and even torch's own AdamW, fused and foreach, come to differ by 1 %.
    """

    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.position = nn.Parameter(torch.zeros(8, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers)
        self.classes = nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The classes' logits."""
        return self.classes(self.encoder(self.embed(images) + self.position).mean(dim=1))


@dataclass
class Training:
    """A network and its optimizer; the losses and the seconds in step(), batch by batch."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def advance(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Learns from one batch."""
        self.optimizer.zero_grad()
        loss = cross_entropy(self.network(images), labels)
        loss.backward()
        start = perf_counter()
        self.optimizer.step()
        self.seconds.append(perf_counter() - start)
        self.losses.append(loss.item())

    @torch.no_grad()
    def accuracy(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """The share of images read rightly."""
        return (self.network(images).argmax(dim=1) == labels).double().mean().item()


def start(network: nn.Module) -> tuple[Training, Training]:
    """Two trainings from the network's weights: with torch's optimizer, and with fastopt's."""
    one, other = copy.deepcopy(network), copy.deepcopy(network)
    return (
        Training(one, torch.optim.AdamW(one.parameters(), lr=LR, fused=True)),
        Training(other, fastopt.torch.AdamW(other.parameters(), lr=LR)),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, prints the losses and the times of both, and draws them."""
    options = common.parser(__doc__, epochs=12).parse_args(arguments)
    torch.set_num_threads(THREADS)
    fastopt.set_num_threads(THREADS)
    torch.manual_seed(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.images / 16, dtype=torch.float32), torch.tensor(digits.target)
    order = torch.randperm(len(images))
    held_out, learnt = order[:HELD_OUT], order[HELD_OUT:]
    network = Network()
    for training in start(network):  # to no purpose but to load libraries and start threads
        training.advance(images, labels)
    torchs, ours = start(network)

    rows = []
    for epoch in range(1, options.epochs + 1):
        batches = learnt[torch.randperm(len(learnt))].split(BATCH)
        for k, batch in enumerate(batches):
            for training in (torchs, ours) if k % 2 else (ours, torchs):
                training.advance(images[batch], labels[batch])
        means = [mean(training.losses[-len(batches) :]) for training in (torchs, ours)]
        rows.append([str(epoch), *(f"{loss:.7f}" for loss in means)])
        common.progress(f"[{epoch}/{options.epochs}] loss {means[1]:.4f}")
    difference = max(abs(a - b) / a for a, b in zip(torchs.losses, ours.losses, strict=True))

    common.show("Mean loss of an epoch's batches", ["epoch", "torch fused", "fastopt"], rows)
    common.show(
        f"step() over {len(list(network.parameters()))} tensors of {sum(p.numel() for p in network.parameters()):,} "
        f"elements, {THREADS} threads, {len(ours.losses)} batches of {BATCH} in turns",
        ["optimizer", "median µs a step", "total ms", "held-out accuracy"],
        [
            [
                name,
                f"{1e6 * median(training.seconds):.0f}",
                f"{1e3 * sum(training.seconds):.1f}",
                f"{training.accuracy(images[held_out], labels[held_out]):.1%}",
            ]
            for name, training in (("torch.optim.AdamW(fused=True)", torchs), ("fastopt.torch.AdamW", ours))
        ],
        "Totals also have what threads waited for processors that others used; medians hardly.\n"
        f"Largest relative difference of a batch's loss: {difference:.1e}",
    )
    if options.plot:
        steps = range(1, len(ours.losses) + 1)
        named = {"torch fused": torchs, "fastopt": ours}
        spent = {name: [1e3 * total for total in accumulate(t.seconds)] for name, t in named.items()}
        common.draw(
            options.plot,
            "AdamW on handwritten digits, by torch and by fastopt",
            common.Panel({name: (steps, t.losses) for name, t in named.items()}, "step", "loss of the batch", "log"),
            common.Panel({name: (steps, times) for name, times in spent.items()}, "step", "ms in step() so far"),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
