"""Effects on a training of parameters and optimizer states in fewer bits.

Two transformers learn with fastopt.torch.AdamW: one to read handwritten digits, one to continue the standard library's
sources character by character. Each does so once in float32, then with states in bfloat16 and in 8 bits, then with
parameters in bfloat16 and each of the ways to keep what they cannot hold, and dropping it. All start from the same
weights and see the same batches. Forward and backward pass are float32 in every training, by float32 copies of
parameters that are not: only what is stored differs. The learning rate rises for a twentieth of the steps, then falls
along a cosine to zero; the smaller it is, the more updates are lost between two neighbours of bfloat16.

With --codes, other codes for states are tried on the text beside fastopt's. They are emulated: after each step of
float32 training the states become what those codes would have kept of them.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import mean
from typing import Any

import common

try:
    import numpy as np
    import torch
    import torch_digits
    from sklearn.datasets import load_digits
    from torch import nn
    from torch.func import functional_call
    from torch.nn.functional import cross_entropy, pad

    import fastopt
    import fastopt.torch
    from fastopt.arrays.blocks import QUANT_BLOCK
    from fastopt.binding.blocks import blocks_of, values_of
    from fastopt.jobs.storage import SMALLEST_IN_BLOCKS
except ModuleNotFoundError as missing:
    common.explain(missing)

THREADS = 1  # networks so small gain little by a second, and lose much where it must wait for a processor
STORAGES: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "bf16 states": (torch.float32, {"state_dtype": "bfloat16"}),
    "8-bit states": (torch.float32, {"state_dtype": "8bit"}),
    "bf16, float32 master": (torch.bfloat16, {"state_dtype": "bfloat16", "rounding": "master"}),
    "bf16, Kahan": (torch.bfloat16, {"state_dtype": "bfloat16", "rounding": "kahan"}),
    "bf16, stochastic": (torch.bfloat16, {"state_dtype": "bfloat16", "rounding": "stochastic", "seed": 0}),
    "bf16, nearest": (torch.bfloat16, {"state_dtype": "bfloat16", "rounding": "nearest"}),
}

Batch = tuple[torch.Tensor, torch.Tensor]


class Reader(nn.Module):
    """A transformer that continues a text, a character at a time."""

    def __init__(self, characters: int, context: int = 64, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, width)
        self.position = nn.Parameter(torch.zeros(context, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.characters = nn.Linear(width, characters)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context))
        nn.init.normal_(self.embed.weight, std=width**-0.5)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """The next characters' logits."""
        return self.characters(self.encoder(self.embed(text) + self.position, mask=self.mask, is_causal=True))


@dataclass(frozen=True)
class Task:
    """Something to learn."""

    name: str
    network: nn.Module
    lr: float
    batch: Callable[[int], Batch]  # by number; the same at each call
    held_out: Batch


@dataclass
class Training:
    """A network and its optimizer, and the losses so far."""

    task: Task
    network: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the network's output, computed in float32."""
        floats = {name: p.float() for name, p in self.network.named_parameters()}
        return functional_call(self.network, floats, (inputs,)).flatten(0, -2)

    def advance(self, steps: int, after: Callable[[torch.optim.Optimizer], None] = lambda _: None) -> Training:
        """Learns from so many batches, calling `after` after each."""
        warm = max(1, steps // 20)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda k: min(1, (k + 1) / warm) * (1 + math.cos(math.pi * k / steps)) / 2
        )
        for k in range(steps):
            inputs, labels = self.task.batch(k)
            self.optimizer.zero_grad()
            loss = cross_entropy(self.logits(inputs), labels.flatten())
            loss.backward()
            self.optimizer.step()
            after(self.optimizer)
            schedule.step()
            self.losses.append(loss.item())
        return self

    @property
    def loss(self) -> float:
        """The mean over the last tenth of the steps."""
        return mean(self.losses[-math.ceil(len(self.losses) / 10) :])

    @torch.no_grad()
    def examine(self) -> tuple[float, float]:
        """The loss and the accuracy on what was held out."""
        inputs, labels = self.task.held_out
        logits, labels = self.logits(inputs), labels.flatten()
        return cross_entropy(logits, labels).item(), (logits.argmax(dim=1) == labels).double().mean().item()

    @property
    def bytes_each(self) -> float:
        """Return the bytes of a parameter with its states, gradients aside."""
        states = [x for state in self.optimizer.state.values() for name, x in state.items() if name != "step"]
        params = list(self.network.parameters())
        return sum(x.nbytes for x in (*params, *states)) / sum(p.numel() for p in params)


def digits() -> Task:
    """Images of handwritten digits."""
    data = load_digits()
    images, labels = torch.tensor(data.images / 16, dtype=torch.float32), torch.tensor(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held_out, learnt = order[: torch_digits.HELD_OUT], order[torch_digits.HELD_OUT :]
    each = math.ceil(len(learnt) / torch_digits.BATCH)  # batches in an epoch

    def batch(k: int) -> Batch:
        shuffled = learnt[torch.randperm(len(learnt), generator=torch.Generator().manual_seed(k // each))]
        chosen = shuffled.split(torch_digits.BATCH)[k % each]
        return images[chosen], labels[chosen]

    network = torch_digits.Network(width=64)
    return Task("digits", network, torch_digits.LR, batch, (images[held_out], labels[held_out]))


def characters(share: float) -> dict[str, np.ndarray]:
    """The sources as numbers of printable characters, 0 for any other; every 20th file apart."""
    number = np.zeros(256, np.uint8)
    printable = np.frombuffer(b"\t\n" + bytes(range(32, 127)), np.uint8)
    number[printable] = np.arange(1, len(printable) + 1)
    files = [number[np.frombuffer(text.encode("ascii", "replace"), np.uint8)] for _, text in common.sources(share)]
    unseen = files[::20]
    del files[::20]
    return {"learnt": np.concatenate(files), "unseen": np.concatenate(unseen)}


def text(share: float, context: int = 64, rows: int = 16) -> Task:
    """The standard library's sources."""
    data = common.cached("characters", share, partial(characters, share))
    learnt, unseen = (torch.from_numpy(data[name]) for name in ("learnt", "unseen"))

    def take(source: torch.Tensor, rows: int, seed: int) -> Batch:
        begins = torch.randint(len(source) - context, (rows, 1), generator=torch.Generator().manual_seed(seed))
        pieces = source[begins + torch.arange(context + 1)].long()
        return pieces[:, :-1], pieces[:, 1:]

    network = Reader(98, context)
    return Task("text", network, 8e-3, lambda k: take(learnt, rows, k), take(unseen, 512, 0))


def start(task: Task, dtype: torch.dtype, options: Mapping[str, Any]) -> Training:
    """A training from the task's weights."""
    network = copy.deepcopy(task.network)
    for p in network.parameters():
        p.data = p.data.to(dtype)
    return Training(task, network, fastopt.torch.AdamW(network.parameters(), lr=task.lr, **options))


def smooth(losses: Sequence[float], share: float) -> tuple[range, np.ndarray]:
    """A curve of means over so large a share of the steps."""
    width = math.ceil(share * len(losses))
    sums = np.cumsum([0.0, *losses])
    return range(width, len(losses) + 1), (sums[width:] - sums[:-width]) / width


Code = Callable[[torch.Tensor, bool], torch.Tensor]  # what it keeps of numbers, which are never negative or may be


def nearest(signed: torch.Tensor, positive: torch.Tensor) -> Code:
    """A code of these values, ascending, as shares of the largest of a block of 256."""

    def keep(x: torch.Tensor, never_negative: bool) -> torch.Tensor:
        values = positive if never_negative else signed
        blocks = pad(x.flatten(), (0, -x.numel() % QUANT_BLOCK)).view(-1, QUANT_BLOCK)
        largest = blocks.abs().amax(dim=1, keepdim=True).clamp(min=1e-37)
        kept = values[torch.bucketize(blocks / largest, (values[1:] + values[:-1]) / 2)] * largest
        return kept.flatten()[: x.numel()].view(x.shape)

    return keep


def eight_bits(x: torch.Tensor, never_negative: bool) -> torch.Tensor:
    """Round to the nearest of fastopt's 8-bit floats."""
    values = values_of(blocks_of(x.numpy().ravel(), never_negative), never_negative, x.numel())
    return torch.from_numpy(values).view(x.shape)


def dynamic(parts: int) -> torch.Tensor:
    """Return the codes of bitsandbytes' dynamic map, 0 and above.

    They are in seven decades, each in twice as many parts as the one below.
    """
    decades = [10.0 ** (k - 6) * torch.linspace(0.1, 1, parts * 2**k + 1) for k in range(7)]
    return torch.cat([torch.tensor([0.0, 1.0]), *((d[1:] + d[:-1]) / 2 for d in decades)]).sort().values


def codes() -> dict[str, Code]:
    """Return the codes to emulate, by name."""
    map7, map8 = dynamic(1), dynamic(2)
    e4m3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float() / 448
    e4m3 = e4m3[e4m3.isfinite()].unique()
    return {
        "bfloat16, nearest": lambda x, _: x.bfloat16().float(),
        "8-bit floats, nearest": eight_bits,
        "bitsandbytes' dynamic map": nearest(torch.cat([-map7[:-1], map7]).unique(), map8),  # without -1
        "float8 e4m3, as torchao's": nearest(e4m3, e4m3),
        "linear": nearest(torch.linspace(-1, 1, 255), torch.linspace(0, 1, 256)),
    }


class Moments:
    """Sees the states after each step: keeps second moments that no code has touched, and emulates a code.

    Parameters
    ----------
    code : callable, optional
        What is left of float32 states; of the parameters that have 8-bit states where these are asked for.
    """

    def __init__(self, code: Code | None = None) -> None:
        self.code = code
        self.exact: dict[torch.Tensor, torch.Tensor] = {}

    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        """After a step."""
        (group,) = optimizer.param_groups
        beta2 = group["betas"][1]
        for p in group["params"]:
            if p.numel() < SMALLEST_IN_BLOCKS:
                continue
            exact = self.exact.setdefault(p, torch.zeros_like(p))
            exact.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            if self.code:
                state = optimizer.state[p]
                state["exp_avg"].copy_(self.code(state["exp_avg"], False))
                state["exp_avg_sq"].copy_(self.code(state["exp_avg_sq"], True))

    def second(self, optimizer: torch.optim.Optimizer) -> tuple[float, ...]:
        """Second moments as shares of the exact ones: what 1 % of them are below, half of them, and 99 %."""
        shares = []
        for p, exact in self.exact.items():
            state = optimizer.state[p]["exp_avg_sq"]
            if state.dtype == torch.uint8:
                state = torch.from_numpy(values_of(state.numpy(), True, p.numel())).view(p.shape)
            shares.append((state.float() / exact).flatten())
        return tuple(np.nanquantile(torch.cat(shares).numpy(), [0.01, 0.5, 0.99]).tolist())


def compare(task: Task, steps: int) -> dict[str, Training]:
    """Trains with every storage, and prints what came of it."""
    trainings = {}
    for k, (name, (dtype, options)) in enumerate(STORAGES.items(), 1):
        trainings[name] = start(task, dtype, options).advance(steps)
        common.progress(f"[{k}/{len(STORAGES)}] {task.name}, {name}: loss {trainings[name].loss:.5f}")
    table = []
    for name, training in trainings.items():
        loss, accuracy = training.examine()
        share = training.loss / trainings["float32"].loss
        numbers = f"{training.bytes_each:.2f}", f"{training.loss:.5f}", f"{share:.3f}", f"{loss:.4f}", f"{accuracy:.2%}"
        table.append([name, *numbers])
    common.show(
        f"{task.name}: {sum(p.numel() for p in task.network.parameters()):,} parameters, {steps} steps",
        ["storage", "bytes a parameter", "loss", "of float32's", "held-out loss", "held-out accuracy"],
        table,
        "Bytes: parameter and states. Loss: the mean over the last tenth of the steps. Trainings that differ in a\n"
        "last bit drift apart: on text up to 0.6 % is chance, on digits a few percent.",
    )
    return trainings


def compare_codes(task: Task, steps: int) -> None:
    """Trains with states in fastopt's codes and in others, and prints what came of it."""
    runs: dict[str, tuple[dict[str, Any], Moments]] = {
        "float32": ({}, Moments()),
        "bfloat16, fastopt's": ({"state_dtype": "bfloat16"}, Moments()),
        "8-bit floats, fastopt's": ({"state_dtype": "8bit"}, Moments()),
        **{name: ({}, Moments(code)) for name, code in codes().items()},
    }
    table = []
    for k, (name, (options, moments)) in enumerate(runs.items(), 1):
        training = start(task, torch.float32, options).advance(steps, moments)
        common.progress(f"[{k}/{len(runs)}] {task.name}, states in {name}: loss {training.loss:.5f}")
        shares = [f"{share:.3f}" for share in moments.second(training.optimizer)]
        table.append([name, f"{training.loss:.5f}", f"{training.examine()[0]:.4f}", *shares])
    common.show(
        f"Codes of the states, {task.name}, {steps} steps",
        ["code", "loss", "held-out loss", "second moment: 1 %", "median", "99 %"],
        table,
        "Second moment: as a share of the exact one, at the end. Too small a one is too large a learning rate, by its\n"
        "root, which need not harm a loss: this learning rate is near float32's best. Up to 0.6 % of a loss is chance.",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains with every storage, prints the losses, and draws them."""
    options = common.parser(__doc__)
    options.add_argument("--steps", type=common.count, default=1500, help="of each training (default %(default)s)")
    options.add_argument("--codes", action="store_true", help="compares codes of states too")
    common.add_size(options, "the library's files")
    options = options.parse_args(arguments)
    torch.set_num_threads(THREADS)
    fastopt.set_num_threads(THREADS)
    torch.manual_seed(0)
    tasks = digits(), text(options.size)
    trainings = {task.name: compare(task, options.steps) for task in tasks}
    if options.codes:
        compare_codes(tasks[1], options.steps)
    if options.plot:
        read, continued = (
            {name: smooth(training.losses, share) for name, training in trainings[task].items()}
            for task, share in (("digits", 0.03), ("text", 0.1))
        )
        exact = continued["float32"][1]
        above = {name: (steps, losses - exact) for name, (steps, losses) in continued.items()}
        common.draw(
            options.plot,
            "AdamW with parameters and states of fewer bits, on handwritten digits and on text",
            common.Panel(read, "step", "loss, digits", "log"),
            common.Panel(above, "step", "loss above float32's, text"),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
