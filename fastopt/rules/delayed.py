"""Rules for gradients that come late: other gradients were applied since their worker read the parameter."""

from __future__ import annotations

from .base import LR, POSITIVE, Hyper, Rule, State, flag, nonnegative
from .primitives import maximum, sqrt, where


def adaptive_revision(p, g, grad_sum, z, z_max, snapshot, lr, read):
    behind = grad_sum - snapshot
    before = lr / sqrt(z_max)
    cross = g * behind
    z = z + (g * g + (cross + cross))
    z_max = maximum(z_max, z)
    root = sqrt(z_max)
    p = p - lr * g / root
    revised = p + (before - lr / root) * behind
    p = where(behind == 0, p, revised)  # else -0 would be 0, and the bits not Adagrad's
    grad_sum = grad_sum + g
    return p, grad_sum, z, z_max, where(read == 0, snapshot, grad_sum)


def fold_adaptive_revision(t, lr, read):
    return lr, read


RULES = (
    Rule(
        "adaptive_revision", "AdaptiveRevision",
        "Adagrad for gradients that come late: the rates of those applied meanwhile are revised",
        "b = s - r; z += g^2 + 2*g*b; m' = max(m, z); p -= lr*g/sqrt(m'); p += (lr/sqrt(m) - lr/sqrt(m'))*b; m = m'; "
        "s += g; r = s",
        "McMahan and Streeter 2014, Delay-tolerant algorithms for asynchronous distributed online learning",
        {
            "lr": nonnegative(1e-2, LR),
            "initial_accumulator_value": Hyper(1.0, "what z and its maximum begin at", low=POSITIVE),
            "read": flag(True, "the gradient's worker reads the parameter after this step"),
        },
        adaptive_revision, fold_adaptive_revision,
        (
            State("grad_sum"),
            State("z", begins="initial_accumulator_value"),
            State("z_max", positive=True, begins="initial_accumulator_value"),
            State("snapshot", copy_of="grad_sum"),
        ),
        notes=(
            "s is ``grad_sum``, and r the ``snapshot``: the sum when the gradient's worker read the parameter. Each "
            "worker has one of its own, and all have the other states in common. With one worker, which reads after "
            "each step, b is 0, and the steps are those of ``Adagrad(initial_accumulator_value=1, eps=0)``. "
            "``read=False`` leaves the snapshot as it is. 8-bit states are too coarse for the difference of two sums.",
        ),
    ),
)  # fmt: skip
