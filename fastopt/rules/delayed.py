"""Rules for gradients that come late: other gradients were applied since their worker read the parameter."""

from __future__ import annotations

from .base import AT_PARAMETER, EPS_ROOT, LR, POSITIVE, Hyper, Rule, State, flag, fraction, nonnegative
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


def dc_asgd(p, g, backup, lr, lambd, read):
    compensated = g + lambd * g * g * (p - backup)
    g = where(p == backup, g, compensated)  # else -0 and infinity would be others, and the bits not SGD's
    p = p - lr * g
    return p, where(read == 0, backup, p)


def fold_dc_asgd(t, lr, lambd, read):
    return lr, lambd, read


def dc_asgd_adaptive(p, g, square_avg, backup, lr, lambd0, alpha, alpha_c, eps_root, read):
    square_avg = alpha * square_avg + alpha_c * g * g
    compensated = g + lambd0 / sqrt(square_avg + eps_root) * g * g * (p - backup)
    g = where(p == backup, g, compensated)
    p = p - lr * g
    return p, square_avg, where(read == 0, backup, p)


def fold_dc_asgd_adaptive(t, lr, lambd0, alpha, eps_root, read):
    return lr, lambd0, alpha, 1.0 - alpha, eps_root, read


_READ = flag(True, "the gradient's worker reads the parameter after this step")
_ZHENG = "Zheng et al. 2017, arXiv:1609.08326"
_BACKUP = (
    "b is the ``backup``: the parameter as the gradient's worker read it, and each worker has one of its own. With one "
    "worker, which reads after each step, b is p, and the steps are those of ``SGD`` (of a parameter that no "
    "``decoupled_weight_decay`` moves). ``read=False`` leaves the backup as it is. It is "
    "stored as the parameter is, or its master."
)


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
            "read": _READ,
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
    Rule(
        "dc_asgd", "DCASGD",
        "SGD for gradients that come late, each corrected by its square to where the parameter is now",
        "g' = g + lambd*g^2*(p - b); p -= lr*g'; b = p",
        _ZHENG,
        {
            "lr": nonnegative(1e-3, LR),
            "lambd": nonnegative(0.04, "factor of the compensation"),
            "read": _READ,
        },
        dc_asgd, fold_dc_asgd, (State("backup", begins=AT_PARAMETER, copy_of=AT_PARAMETER),),
        notes=(_BACKUP,),
    ),
    Rule(
        "dc_asgd_adaptive", "DCASGD",
        "DC-ASGD whose factor is smaller where gradients are larger",
        "s = alpha*s + (1 - alpha)*g^2; as dc_asgd with lambd = lambd0/sqrt(s + eps_root)",
        _ZHENG,
        {
            "lr": nonnegative(1e-3, LR),
            "lambd0": nonnegative(2.0, "factor of the compensation, over the root of the average squared gradient"),
            "alpha": fraction(0.95, "decay rate of the average of squares"),
            "eps_root": Hyper(1e-7, EPS_ROOT, low=POSITIVE),
            "read": _READ,
        },
        dc_asgd_adaptive, fold_dc_asgd_adaptive,
        (State("square_avg", positive=True), State("backup", begins=AT_PARAMETER, copy_of=AT_PARAMETER)),
        notes=(_BACKUP,),
    ),
)  # fmt: skip
