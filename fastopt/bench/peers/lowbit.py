"""Adam whose states are stored in fewer bits, by torchao and bitsandbytes; both compile for the CPU or have kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from .base import Peer, load
from .pytorch import leaf, load_torch

_SCALED = 4 / 256  # bytes of an element's part of its block's scale


def _torchao(name: str) -> Callable[..., Any]:
    return getattr(load("torchao.optim", "torchao"), name)


def _bitsandbytes(params: Any, lr: float) -> Any:
    return load("bitsandbytes", "bitsandbytes").optim.Adam8bit(params, lr=lr, min_8bit_size=1)


#: Bytes of a state's element, and what makes the optimizer.
LOWBIT: dict[str, tuple[float, Callable[..., Any]]] = {
    "torchao 8bit": (1 + _SCALED, lambda params, lr: _torchao("Adam8bit")(params, lr=lr)),
    "torchao fp8": (1 + _SCALED, lambda params, lr: _torchao("AdamFp8")(params, lr=lr)),
    "torchao 4bit": (0.5 + 2 * _SCALED, lambda params, lr: _torchao("Adam4bit")(params, lr=lr)),
    "bitsandbytes 8bit": (1 + _SCALED, _bitsandbytes),
}


def build(name: str, start: np.ndarray, grad: np.ndarray, lr: float, threads: int) -> Peer:
    """The optimizer's ``step``; raises `Skip` where its package is missing."""
    load_torch(threads)
    param, array = leaf(start, grad)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchao: it speaks of caches on disk
        optimizer = LOWBIT[name][1]([param], lr)
        optimizer.step()  # and compiles
    return Peer(optimizer.step, lambda: [array])
