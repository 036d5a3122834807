"""Rules by tensor: a reading pass measures whole tensors, each or all together, which sets the size of the step."""

from __future__ import annotations

from .adam import fold_adam
from .base import AT_PARAMETER, EPS, EPS_ROOT, LR, POSITIVE, Hyper, Rule, Stage, State, flag, fraction, nonnegative
from .primitives import isnan, sqrt, where


def lars(p, g, momentum_buffer, mu, weight_decay, within, beside, eps, trust, gain, rate, ratio):
    decayed = g + weight_decay * p
    momentum_buffer = mu * momentum_buffer + ratio * where(weight_decay == 0, g, decayed)
    return p - rate * momentum_buffer, momentum_buffer


def measure_lars(p, g, mu, weight_decay, within, beside, eps, trust, gain, rate):
    decayed = g + within * p
    g = where(within == 0, g, decayed)
    return (p, p), (g, g)


def fold_lars(t, lr, momentum, trust_coefficient, eps, lr_inside, decay_inside, weight_decay):
    gain, rate = (lr, 1.0) if lr_inside else (1.0, lr)
    within, beside = (weight_decay, 0.0) if decay_inside else (0.0, weight_decay)
    return momentum, weight_decay, within, beside, eps, trust_coefficient, gain, rate


def stage_lars(param_sum, grad_sum, mu, weight_decay, within, beside, eps, trust, gain, rate):
    norm = sqrt(param_sum)
    below = sqrt(grad_sum) + beside * norm + eps
    plain = (param_sum == 0) | (grad_sum == 0)
    return (gain * where(plain, 1.0, trust * norm / where(plain, 1.0, below)),)


def lamb(
    p, g, exp_avg, exp_avg_sq,
    beta1, beta1_c, beta2, beta2_c, scale, eps, eps_root, weight_decay, lr, rate,
):  # fmt: skip
    exp_avg = beta1 * exp_avg + beta1_c * g
    exp_avg_sq = beta2 * exp_avg_sq + beta2_c * g * g
    direction = scale * exp_avg / (sqrt(exp_avg_sq + eps_root) + eps)
    decayed = direction + weight_decay * p
    return p - rate * where(weight_decay == 0, direction, decayed), exp_avg, exp_avg_sq


def measure_lamb(
    p, g, exp_avg, exp_avg_sq,
    beta1, beta1_c, beta2, beta2_c, scale, eps, eps_root, weight_decay, lr,
):  # fmt: skip
    exp_avg = beta1 * exp_avg + beta1_c * g
    exp_avg_sq = beta2 * exp_avg_sq + beta2_c * g * g
    direction = scale * exp_avg / (sqrt(exp_avg_sq + eps_root) + eps)
    decayed = direction + weight_decay * p
    direction = where(weight_decay == 0, direction, decayed)
    return (p, p), (direction, direction)


def fold_lamb(t, lr, beta1, beta2, eps, eps_root, weight_decay):
    return (*fold_adam(t, 1.0, beta1, beta2, eps, eps_root, 1.0, 0.0), weight_decay, lr)


def stage_lamb(
    param_sum, step_sum,
    beta1, beta1_c, beta2, beta2_c, scale, eps, eps_root, weight_decay, lr,
):  # fmt: skip
    plain = (param_sum == 0) | (step_sum == 0)
    return (lr * where(plain, 1.0, sqrt(param_sum) / where(plain, 1.0, sqrt(step_sum))),)


def novograd(
    p, g, exp_avg,
    beta1, gain, beta2, beta2_c, eps, eps_root, weight_decay, lr, scale,
):  # fmt: skip
    direction = scale * g
    decayed = direction + weight_decay * p
    exp_avg = beta1 * exp_avg + gain * where(weight_decay == 0, direction, decayed)
    return p - lr * exp_avg, exp_avg


def measure_novograd(p, g, beta1, gain, beta2, beta2_c, eps, eps_root, weight_decay, lr):
    return ((g, g),)


def fold_novograd(t, lr, beta1, beta2, eps, eps_root, grad_averaging, weight_decay):
    kept = 0.0 if t == 1.0 else beta2  # the first average is the first norm
    return beta1, (1.0 - beta1 if grad_averaging else 1.0), kept, 1.0 - kept, eps, eps_root, weight_decay, lr


def stage_novograd(grad_sum, exp_avg_sq, beta1, gain, beta2, beta2_c, eps, eps_root, weight_decay, lr):
    exp_avg_sq = beta2 * exp_avg_sq + beta2_c * grad_sum
    below = sqrt(exp_avg_sq + eps_root) + eps
    return exp_avg_sq, 1.0 / where(below == 0, 1.0, below)


def swats(
    p, g, exp_avg, exp_avg_sq,
    beta1, beta1_c, beta2, beta2_c, scale, eps, correction, nearness, sgd, gain, step_rate, kept,
):  # fmt: skip
    exp_avg = beta1 * exp_avg + gain * g
    squares = beta2 * exp_avg_sq + beta2_c * g * g
    exp_avg_sq = where(sgd == 0, squares, exp_avg_sq)
    step = where(sgd == 0, scale * exp_avg / (sqrt(exp_avg_sq) + eps), step_rate * exp_avg)
    return p - step, where(kept == 0, kept, exp_avg), exp_avg_sq


def measure_swats(p, g, exp_avg, exp_avg_sq, beta1, beta1_c, beta2, beta2_c, scale, eps, correction, nearness):
    exp_avg = beta1 * exp_avg + beta1_c * g
    exp_avg_sq = beta2 * exp_avg_sq + beta2_c * g * g
    step = scale * exp_avg / (sqrt(exp_avg_sq) + eps)
    return (step, step), (step, g)


def fold_swats(t, lr, beta1, beta2, eps):
    correction = 1.0 - beta2**t
    nearness = 0.0 if t == 1.0 else eps  # the first average is what it is of
    scale = lr * sqrt(correction) / (1.0 - beta1**t)
    return beta1, 1.0 - beta1, beta2, 1.0 - beta2, scale, eps, correction, nearness


def stage_swats(
    step_sum, grad_sum, exp_avg2, phase, rate,
    beta1, beta1_c, beta2, beta2_c, scale, eps, correction, nearness,
):  # fmt: skip
    measured = (phase == 0) & (grad_sum != 0)
    found = step_sum / where(grad_sum == 0, 1.0, grad_sum)
    average = beta2 * exp_avg2 + beta2_c * found
    exp_avg2 = where(measured, average, exp_avg2)
    settled = exp_avg2 / correction
    away = where(settled < found, found - settled, settled - found)
    ends = measured & (settled > 0) & (away < nearness)
    rate = where(ends, settled, rate)
    gain = where(phase == 0, beta1_c, 1.0)
    return exp_avg2, where(ends, 1.0, phase), rate, phase, gain, beta1_c * rate, where(ends, 0.0, 1.0)


def prodigy(
    p, g, exp_avg, exp_avg_sq, s, p0,
    beta1, beta1_c, beta2, beta2_c, beta3, gain, progress, counted, within, beside, lr, eps, d0, d_coef, growth,
    d, rate, below,
):  # fmt: skip
    decayed = g + within * p
    g = where(within == 0, g, decayed)
    exp_avg = beta1 * exp_avg + beta1_c * d * g
    exp_avg_sq = beta2 * exp_avg_sq + beta2_c * d * d * g * g
    s = beta3 * s + gain * d * d * g
    decayed = p - rate * beside * p
    p = where(beside == 0, p, decayed)
    return p - rate * exp_avg / (sqrt(exp_avg_sq) + below), exp_avg, exp_avg_sq, s, p0


def measure_prodigy(
    p, g, s, p0,
    beta1, beta1_c, beta2, beta2_c, beta3, gain, progress, counted, within, beside, lr, eps, d0, d_coef, growth,
    d,
):  # fmt: skip
    decayed = g + within * p
    g = where(within == 0, g, decayed)
    s = beta3 * s + gain * d * d * g
    return (progress * d * d * g, p0 - p), (where(s < 0, -s, s), counted)


def fold_prodigy(
    t, lr, beta1, beta2, beta3, eps, decouple, use_bias_correction, safeguard_warmup, d0, d_coef, growth_rate,
    weight_decay,
):  # fmt: skip
    if use_bias_correction:
        lr = lr * sqrt(1.0 - beta2**t) / (1.0 - beta1**t)
    within, beside = (0.0, weight_decay) if decouple else (weight_decay, 0.0)
    return (
        beta1, 1.0 - beta1, beta2, 1.0 - beta2, sqrt(beta2) if isnan(beta3) else beta3,
        (1.0 if safeguard_warmup else lr) / d0, lr / d0, 1.0 if lr > 0 else 0.0, within, beside, lr, eps, d0, d_coef,
        0.0 if isnan(growth_rate) or 1.0 / growth_rate == 0 else growth_rate,
    )  # fmt: skip


def stage_prodigy(
    gradient_sum, s_sum, d, d_max, d_numerator,
    beta1, beta1_c, beta2, beta2_c, beta3, gain, progress, counted, within, beside, lr, eps, d0, d_coef, growth,
):  # fmt: skip
    moves = s_sum != 0
    numerator = beta3 * d_numerator + gradient_sum
    found = d_coef * numerator / where(moves, s_sum, 1.0)
    largest = where(found > d_max, found, d_max)
    grown = growth * where((d == d0) & (found > d), found, d)
    after = where((growth != 0) & (grown < largest), grown, largest)
    after = where(moves, after, d)
    return (
        after, where(moves, largest, d_max), where(moves, numerator, d_numerator),
        where(moves, lr * d, 0.0), eps * after,
    )  # fmt: skip


_BY_TENSOR = (
    "The norms are of whole tensors, summed in float64. An element that is not finite makes all of its tensor so. "
    "Gradients of some rows and 'state_memory' are refused."
)
_OVER_ALL = (
    "The sums, in float64, are of all tensors, which share the states of one number. Refused are gradients of some "
    "rows, 'state_memory', shards, `fastopt.distributed.Synchronous`, and float64 parameters beside others."
)

_SWATS = Rule(
    "swats", "SWATS",
    "Adam until a tensor's steps settle on the length that SGD's would have, then SGD with momentum",
    "m, v as adam; d = lr*sqrt(1 - beta2^t)/(1 - beta1^t)*m/(sqrt(v) + eps); p -= d; e = sum(d*d)/sum(d*g); "
    "a = beta2*a + (1 - beta2)*e; r = a/(1 - beta2^t); after a step t > 1 with r > 0 within eps of e, with this r: "
    "b = beta1*b + g; p -= (1 - beta1)*r*b",
    "Keskar and Socher 2017, arXiv:1712.07628",
    {
        "lr": nonnegative(1e-3, "learning rate of Adam"),
        "beta1": fraction(0.9, "decay rate of the gradient's average, and then of the velocity", part_of="betas"),
        "beta2": fraction(0.999, "decay rate of the other averages, the rate's too", part_of="betas"),
        "eps": nonnegative(1e-9, "added to the denominator; how near the rate comes to its average"),
    },
    swats, fold_swats,
    (
        State("exp_avg"),
        State("exp_avg_sq", positive=True),
        State("exp_avg2", single=True),
        State("phase", single=True),
        State("rate", single=True),
    ),
    stage=Stage("tensor", measure_swats, stage_swats),
    notes=(
        "``over='all'`` is the paper's: the sums are of all tensors, which change over together. ``phase`` is 1 from "
        "then on, and ``exp_avg``, from zero, the velocity.",
        _BY_TENSOR,
    ),
)  # fmt: skip

RULES = (
    Rule(
        "lars", "LARS",
        "Momentum with a rate for each tensor: the parameter's norm over the gradient's",
        "r = trust_coefficient*norm(p)/(norm(g) + weight_decay*norm(p) + eps), 1 where a norm is 0; "
        "b = momentum*b + r*(g + weight_decay*p); p -= lr*b",
        "You et al. 2017, arXiv:1708.03888",
        {
            "lr": nonnegative(1.0, LR),
            "momentum": fraction(0.9, "decay rate of the velocity"),
            "trust_coefficient": nonnegative(1e-3, "the length of a step beside the parameter's norm, at lr 1"),
            "eps": nonnegative(0.0, EPS),
            "lr_inside": flag(False, "the velocity accumulates steps, lr and all (differs once lr changes)"),
            "decay_inside": flag(False, "norm(g + weight_decay*p) is below, in place of the two norms"),
        },
        lars, fold_lars, (State("momentum_buffer"),), decoupled=0.0,
        stage=Stage("tensor", measure_lars, stage_lars),
        notes=(
            "``lr_inside=True`` is the form of the paper and of optax: b = momentum*b + lr*r*(...); p -= b. optax has "
            "``decay_inside=True`` too.",
            _BY_TENSOR,
        ),
    ),
    Rule(
        "lamb", "LAMB",
        "Adam with a rate for each tensor: the parameter's norm over the step's",
        "m, v as adam; u = m^/(sqrt(v^ + eps_root) + eps) + weight_decay*p; p -= lr*norm(p)/norm(u)*u, the quotient 1 "
        "where a norm is 0",
        "You et al. 2020, arXiv:1904.00962",
        {
            "lr": nonnegative(1e-3, LR),
            "beta1": fraction(0.9, "decay rate of the gradient's average", part_of="betas"),
            "beta2": fraction(0.999, "decay rate of the squared gradient's average", part_of="betas"),
            "eps": nonnegative(1e-6, EPS),
            "eps_root": nonnegative(0.0, EPS_ROOT),
        },
        lamb, fold_lamb, (State("exp_avg"), State("exp_avg_sq", positive=True)), decoupled=0.0,
        stage=Stage("tensor", measure_lamb, stage_lamb),
        notes=(_BY_TENSOR,),
    ),
    Rule(
        "novograd", "NovoGrad",
        "Momentum with gradients over an average of their norms, one number for each tensor",
        "v = beta2*v + (1 - beta2)*norm(g)^2, at first norm(g)^2; "
        "m = beta1*m + (g/(sqrt(v + eps_root) + eps) + weight_decay*p)*(1 - beta1 if grad_averaging else 1); p -= lr*m",
        "Ginsburg et al. 2019, arXiv:1905.11286",
        {
            "lr": nonnegative(1e-3, LR),
            "beta1": fraction(0.95, "decay rate of the velocity", part_of="betas"),
            "beta2": fraction(0.98, "decay rate of the squared norm's average", part_of="betas"),
            "eps": nonnegative(1e-8, EPS),
            "eps_root": nonnegative(0.0, EPS_ROOT),
            "grad_averaging": flag(False, "the velocity is an average: what is added to it is times 1 - beta1"),
        },
        novograd, fold_novograd, (State("exp_avg"), State("exp_avg_sq", positive=True, single=True)), decoupled=0.0,
        stage=Stage("tensor", measure_novograd, stage_novograd),
        notes=(_BY_TENSOR,),
    ),
    _SWATS,
    _SWATS.variant(
        "swats_over_all", "SWATS",
        summary="SWATS with one rate for all tensors, which change over together",
        formula="as swats, with the sums of all tensors",
        stage=Stage("all", measure_swats, stage_swats),
    ),
    Rule(
        "prodigy", "Prodigy",
        "Adam that finds its own learning rate, by how far parameters have come from where they began",
        "m = beta1*m + (1 - beta1)*d*g; v = beta2*v + (1 - beta2)*(d*g)^2; "
        "s = beta3*s + d^2/d0*lr*g, r = beta3*r + sum(d^2/d0*lr*g*(p0 - p)); "
        "d_max = max(d_max, d_coef*r/sum(abs(s))); "
        "p -= lr*d*(m/(sqrt(v) + d'*eps) + weight_decay*p), d' = min(d_max, growth_rate*d) the next step's d",
        "Mishchenko and Defazio 2023, arXiv:2306.06101; the authors' package prodigyopt",
        {
            "lr": nonnegative(1.0, "a factor of the learning rate that is found"),
            "beta1": fraction(0.9, "decay rate of the gradient's average", part_of="betas"),
            "beta2": fraction(0.999, "decay rate of the squared gradient's average", part_of="betas"),
            "beta3": fraction(None, "decay rate of the sums, by default sqrt(beta2)", optional=True),
            "eps": Hyper(1e-8, "added to the denominator, times d", low=POSITIVE),
            "decouple": flag(True, "``weight_decay`` is of the parameter itself, else L2"),
            "use_bias_correction": flag(False, "the rate is times sqrt(1 - beta2^t)/(1 - beta1^t)"),
            "safeguard_warmup": flag(False, "what the estimate is over is without lr, which may be small at first"),
            "d0": Hyper(1e-6, "the estimate d before the first step", low=POSITIVE),
            "d_coef": Hyper(1.0, "a factor of the estimate", low=POSITIVE),
            "growth_rate": Hyper(
                None, "the estimate is at most so many times the last one, but for d0",
                low=POSITIVE, optional=True, infinite=True,
            ),
        },
        prodigy, fold_prodigy,
        (
            State("exp_avg"),
            State("exp_avg_sq", positive=True),
            State("s"),
            State("p0", begins=AT_PARAMETER),
            State("d", positive=True, begins="d0", single=True),
            State("d_max", positive=True, begins="d0", single=True),
            State("d_numerator", single=True),
        ),
        decoupled=0.0,
        stage=Stage("all", measure_prodigy, stage_prodigy),
        notes=(
            "d goes by the first parameter's group; one with lr 0 is not measured. "
            + _OVER_ALL,
        ),
        lacks={
            "slice_p": "the sums are of all elements, as with slice_p=1 there",
            "fsdp_in_use": "the sums are of one process, and shards are refused",
        },
    ),
)  # fmt: skip
