"""optax under ``jax.jit``, parameters and states donated."""

from __future__ import annotations

import os
from operator import attrgetter
from typing import Any

import numpy as np

from .base import Competitor, Peer, Task, hyper_of, load

#: The rules that optax has with the same formula. (Its amsgrad, nadam, radam and adan are others, whatever their
#: options: adan's weighs the gradient's difference by 1 - beta2, the paper's by beta2. See the table of
#: fastopt/rules/README.md.)
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {}),
    "momentum": ("sgd", {"momentum": 0.9}),
    "nesterov": ("sgd", {"momentum": 0.9, "nesterov": True}),
    "adagrad": ("adagrad", {"initial_accumulator_value": 0.0, "eps": 0.0}),
    "adadelta": ("adadelta", {}),
    "rmsprop": ("rmsprop", {"decay": 0.99, "eps_in_sqrt": False}),
    "rmsprop_momentum": ("rmsprop", {"decay": 0.99, "eps_in_sqrt": False, "momentum": 0.9}),
    "rmsprop_centered": ("rmsprop", {"decay": 0.99, "eps_in_sqrt": False, "centered": True}),
    "adam": ("adam", {}),
    "adamw": ("adamw", {"weight_decay": 0.01}),
    "adamax": ("adamax", {}),
    "adabelief": ("adabelief", {}),
    "lion": ("lion", {"weight_decay": 0.0}),
    "signsgd": ("signum", {}),
    "ademamix": ("contrib.ademamix", {}),
    "lars": ("lars", {}),
    "lamb": ("lamb", {}),
    "novograd": ("novograd", {"b1": 0.95, "b2": 0.98, "eps": 1e-8}),
    "schedule_free_sgd": ("contrib.schedule_free_sgd", {}),
    "schedule_free_adamw": ("contrib.schedule_free_adamw", {}),
}


def build(task: Task) -> Peer:
    """The jitted update, waited for."""
    os.environ.setdefault("NPROC", str(task.threads))  # XLA asks once how many threads to start
    jax, optax = load("jax", "jax optax"), load("optax", "jax optax")
    name, options = CLASSES[task.rule.name]
    optimizer = attrgetter(name)(optax)(hyper_of(task.rule)["lr"], **options)

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(update, donate_argnums=(0, 1))
    grads, params = jax.numpy.array(task.grad), jax.numpy.array(task.start)
    held = [params, optimizer.init(params)]

    def step() -> None:
        held[:] = jax.block_until_ready(compiled(*held, grads))

    return Peer(step, lambda: [np.asarray(held[0])])


OPTAX = Competitor("optax", "optax", build, "optax", rules=CLASSES, dtypes=("float32",), temporaries=2)
