"""Adam and its family: averages of the gradient and of its square, with bias correction."""

from __future__ import annotations

from .base import EPS, EPS_ROOT, LR, POSITIVE, Hyper, Rule, State, flag, fraction, nonnegative
from .primitives import isnan, maximum, sqrt, where


def adam(p, g, exp_avg, exp_avg_sq, beta1, beta1_c, beta2, beta2_c, rate, eps, eps_root):
    exp_avg = beta1 * exp_avg + beta1_c * g
    exp_avg_sq = beta2 * exp_avg_sq + beta2_c * g * g
    return p - rate * exp_avg / (sqrt(exp_avg_sq + eps_root) + eps), exp_avg, exp_avg_sq


def fold_adam(t, lr, beta1, beta2, eps, eps_root, bias_correction, eps_hat):
    # v^ could be beyond the largest number where v is not: its correction is taken out of the quotient.
    correction1 = 1.0 - beta1**t if bias_correction else 1.0
    correction2 = 1.0 - beta2**t if bias_correction else 1.0
    root = sqrt(correction2)
    eps = eps if eps_hat else eps * root
    return beta1, 1.0 - beta1, beta2, 1.0 - beta2, lr * root / correction1, eps, eps_root * correction2


def amsgrad(
    p, g, exp_avg, exp_avg_sq, max_exp_avg_sq,
    beta1, beta1_c, beta2, beta2_c, rate, eps, eps_root, correction2,
):  # fmt: skip
    exp_avg = beta1 * exp_avg + beta1_c * g
    exp_avg_sq = beta2 * exp_avg_sq + beta2_c * g * g
    max_exp_avg_sq = maximum(max_exp_avg_sq, exp_avg_sq * correction2)
    p = p - rate * exp_avg / (sqrt(max_exp_avg_sq + eps_root) + eps)
    return p, exp_avg, exp_avg_sq, max_exp_avg_sq


def fold_amsgrad(t, lr, beta1, beta2, eps, eps_root, bias_correction, eps_hat, max_corrected):
    c = fold_adam(t, lr, beta1, beta2, eps, eps_root, bias_correction, eps_hat)
    correction2 = 1.0 - beta2**t if bias_correction and max_corrected else 1.0
    root = sqrt(correction2)
    return (*c[:4], c[4] / root, c[5] / root, c[6] / correction2, 1.0 / correction2)


def adamax(p, g, exp_avg, exp_inf, beta1, beta1_c, beta2, eps_inside, eps_outside, rate):
    exp_avg = beta1 * exp_avg + beta1_c * g
    exp_inf = maximum(beta2 * exp_inf, abs(g) + eps_inside)
    norm = exp_inf + eps_outside
    # A norm of 0 means that every gradient was 0: the update is 0 too, not 0/0.
    return p - where(norm == 0, norm, rate * exp_avg / norm), exp_avg, exp_inf


def fold_adamax(t, lr, beta1, beta2, eps, eps_outside):
    eps_inside, eps_outside = (0.0, eps) if eps_outside else (eps, 0.0)
    return beta1, 1.0 - beta1, beta2, eps_inside, eps_outside, lr / (1.0 - beta1**t)


def nadam(p, g, exp_avg, exp_avg_sq, beta1, beta1_c, beta2, beta2_c, rate_m, rate_g, eps):
    exp_avg = beta1 * exp_avg + beta1_c * g
    exp_avg_sq = beta2 * exp_avg_sq + beta2_c * g * g
    p = p - (rate_m * exp_avg + rate_g * g) / (sqrt(exp_avg_sq) + eps)
    return p, exp_avg, exp_avg_sq


def fold_nadam(t, lr, beta1, beta2, eps, momentum_decay, mu_product):
    if isnan(momentum_decay):  # None: a constant momentum
        correction1 = 1.0 - beta1**t
        rate_m = lr * beta1 / correction1
        rate_g = lr * (1.0 - beta1) / correction1
    else:
        mu = beta1 * (1.0 - 0.5 * 0.96 ** (t * momentum_decay))
        mu_next = beta1 * (1.0 - 0.5 * 0.96 ** ((t + 1.0) * momentum_decay))
        mu_product = mu_product * mu
        rate_m = lr * mu_next / (1.0 - mu_product * mu_next)
        rate_g = lr * (1.0 - mu) / (1.0 - mu_product)
    root = sqrt(1.0 - beta2**t)  # as in fold_adam
    return beta1, 1.0 - beta1, beta2, 1.0 - beta2, rate_m * root, rate_g * root, eps * root, mu_product


def qhadam(p, g, exp_avg, exp_avg_sq, beta1, beta1_c, beta2, beta2_c, rate_m, rate_g, weight_v, weight_g, eps):
    exp_avg = beta1 * exp_avg + beta1_c * g
    exp_avg_sq = beta2 * exp_avg_sq + beta2_c * g * g
    p = p - (rate_m * exp_avg + rate_g * g) / (sqrt(weight_v * exp_avg_sq + weight_g * g * g) + eps)
    return p, exp_avg, exp_avg_sq


def fold_qhadam(t, lr, beta1, beta2, eps, nu1, nu2):
    correction2 = 1.0 - beta2**t
    root = sqrt(correction2)  # as in fold_adam
    rate_m, rate_g = lr * nu1 * root / (1.0 - beta1**t), lr * (1.0 - nu1) * root
    return beta1, 1.0 - beta1, beta2, 1.0 - beta2, rate_m, rate_g, nu2, (1.0 - nu2) * correction2, eps * root


def adabound(p, g, exp_avg, exp_avg_sq, beta1, beta1_c, beta2, beta2_c, rate, eps, lower, upper):
    exp_avg = beta1 * exp_avg + beta1_c * g
    exp_avg_sq = beta2 * exp_avg_sq + beta2_c * g * g
    r = rate / (sqrt(exp_avg_sq) + eps)
    r = where(r < lower, lower, where(r > upper, upper, r))
    return p - r * exp_avg, exp_avg, exp_avg_sq


def fold_adabound(t, lr, beta1, beta2, eps, final_lr, gamma, base_lr):
    rate = lr * sqrt(1.0 - beta2**t) / (1.0 - beta1**t)
    final = final_lr if isnan(base_lr) else final_lr * lr / base_lr  # None: lr is the base
    lower = final * (1.0 - 1.0 / (gamma * t + 1.0))
    upper = final + final / (gamma * t)
    return beta1, 1.0 - beta1, beta2, 1.0 - beta2, rate, eps, lower, upper


def amsbound(p, g, exp_avg, exp_avg_sq, max_exp_avg_sq, beta1, beta1_c, beta2, beta2_c, rate, eps, lower, upper):
    exp_avg = beta1 * exp_avg + beta1_c * g
    exp_avg_sq = beta2 * exp_avg_sq + beta2_c * g * g
    max_exp_avg_sq = maximum(max_exp_avg_sq, exp_avg_sq)
    r = rate / (sqrt(max_exp_avg_sq) + eps)
    r = where(r < lower, lower, where(r > upper, upper, r))
    return p - r * exp_avg, exp_avg, exp_avg_sq, max_exp_avg_sq


_BETAS = {
    "beta1": fraction(0.9, "decay rate of the gradient's average"),
    "beta2": fraction(0.999, "decay rate of the squared gradient's average"),
}
_ADAM = {
    "lr": nonnegative(1e-3, LR),
    **_BETAS,
    "eps": nonnegative(1e-8, EPS),
    "eps_root": nonnegative(0.0, EPS_ROOT),
    "bias_correction": flag(True, "divide the averages by 1 - beta^t"),
    "eps_hat": flag(False, "divide eps by sqrt(1 - beta2^t), as where it is added to sqrt(v), not to sqrt(v^)"),
}
_AMSGRAD = {**_ADAM, "max_corrected": flag(False, "take the maximum over v^, not over v, which is then corrected")}
_ADABOUND = {
    "lr": nonnegative(1e-3, LR),
    **_BETAS,
    "eps": nonnegative(1e-8, EPS),
    "final_lr": nonnegative(0.1, "the learning rate of the SGD that the rule goes over into"),
    "gamma": Hyper(1e-3, "how fast the bounds close", low=POSITIVE),
    "base_lr": Hyper(None, "the lr that final_lr belongs to; None: lr itself", low=POSITIVE, optional=True),
}
_EPS_HAT = (
    "``eps_hat=True`` is the form at the end of section 2 of Kingma and Ba, which is Keras's: "
    "p -= lr*sqrt(1 - beta2^t)/(1 - beta1^t)*m/(sqrt(v) + eps)."
)
_MOMENTS = (State("exp_avg"), State("exp_avg_sq", positive=True))
_MAX_MOMENTS = (*_MOMENTS, State("max_exp_avg_sq", positive=True))

_adam = Rule(
    "adam", "Adam",
    "The average gradient over the root of the average squared gradient, both corrected for their start at 0",
    "m = beta1*m + (1 - beta1)*g; v = beta2*v + (1 - beta2)*g^2; p -= lr*m^/(sqrt(v^ + eps_root) + eps), "
    "m^ = m/(1 - beta1^t), v^ = v/(1 - beta2^t)",
    "Kingma and Ba 2015, arXiv:1412.6980; torch.optim.Adam",
    _ADAM, adam, fold_adam, _MOMENTS,
    notes=(_EPS_HAT,),
)  # fmt: skip
_amsgrad = Rule(
    "amsgrad", "AMSGrad",
    "Adam with the largest average of squares so far, so that no element's rate grows again",
    "as adam, with x = max(x, v) in place of v",
    "Reddi et al. 2018, arXiv:1904.09237; torch.optim.Adam(amsgrad=True)",
    _AMSGRAD, amsgrad, fold_amsgrad, _MAX_MOMENTS,
    notes=(
        "As torch: the maximum is over the raw v and then corrected. ``bias_correction=False`` is the paper's form, "
        "``max_corrected=True`` optax's.",
        _EPS_HAT,
    ),
)  # fmt: skip

RULES = (
    _adam,
    _amsgrad,
    _adam.variant(
        "adamw", "AdamW", decoupled=1e-2,
        summary="Adam with decoupled weight decay: each step shrinks the parameter by lr*weight_decay of itself",
        formula="p -= lr*weight_decay*p, then as adam",
        source="Loshchilov and Hutter 2019, arXiv:1711.05101; torch.optim.AdamW",
    ),
    _amsgrad.variant(
        "adamw_amsgrad", "AdamW", decoupled=1e-2,
        summary="AMSGrad with decoupled weight decay",
        formula="p -= lr*weight_decay*p, then as amsgrad",
        source="Loshchilov and Hutter 2019, arXiv:1711.05101; torch.optim.AdamW(amsgrad=True)",
    ),
    Rule(
        "adamax", "Adamax",
        "Adam with a decaying maximum of the gradient's magnitude in place of the root of the average square",
        "m = beta1*m + (1 - beta1)*g; u = max(beta2*u, |g| + eps); p -= lr/(1 - beta1^t)*m/u",
        "Kingma and Ba 2015, section 7.1; torch.optim.Adamax",
        {
            "lr": nonnegative(2e-3, LR),
            **_BETAS,
            "eps": nonnegative(1e-8, "added to |g| in the maximum"),
            "eps_outside": flag(False, "add eps to the maximum instead"),
        },
        adamax, fold_adamax, (State("exp_avg"), State("exp_inf", positive=True)),
        notes=(
            "``eps=0`` is the paper's form; there u = 0 gives a zero update. ``eps_outside=True`` is Keras's: "
            "u = max(beta2*u, |g|); p -= lr/(1 - beta1^t)*m/(u + eps).",
        ),
    ),
    Rule(
        "nadam", "NAdam",
        "Adam with Nesterov's momentum, under a schedule of its own",
        "m, v as adam; mu_t = beta1*(1 - 0.96^(t*momentum_decay)/2); "
        "p -= lr*(mu_{t+1}*m/(1 - prod mu_{<=t+1}) + (1 - mu_t)*g/(1 - prod mu_{<=t}))/(sqrt(v^) + eps)",
        "Dozat 2016; torch.optim.NAdam",
        {
            "lr": nonnegative(2e-3, LR),
            **_BETAS,
            "eps": nonnegative(1e-8, EPS),
            "momentum_decay": Hyper(
                4e-3, "psi; infinity: a constant momentum, beta1; None: the same in Ruder's form",
                low=0.0, optional=True, infinite=True,
            ),
        },
        nadam, fold_nadam, _MOMENTS, scalars={"mu_product": 1.0},
        notes=(
            "``momentum_decay=1`` is Keras's form, ``math.inf``, a constant momentum, optax's; with ``None`` "
            "p -= lr*(beta1*m^ + (1 - beta1)*g/(1 - beta1^t))/(sqrt(v^) + eps), the form of Ruder's overview.",
        ),
    ),
    Rule(
        "qhadam", "QHAdam",
        "Quasi-hyperbolic Adam: weighted means of the gradient and its average, and of their squares",
        "as adam, with (1 - nu1)*g + nu1*m^ in place of m^ and (1 - nu2)*g^2 + nu2*v^ in place of v^",
        "Ma and Yarats 2019, arXiv:1810.06801",
        {
            "lr": nonnegative(1e-3, LR),
            **_BETAS,
            "eps": nonnegative(1e-8, EPS),
            "nu1": Hyper(1.0, "weight of the average against the gradient", low=0.0, high=1.0),
            "nu2": Hyper(1.0, "weight of the average against the squared gradient", low=0.0, high=1.0),
        },
        qhadam, fold_qhadam, _MOMENTS,
        notes=("nus = (1, 1) is Adam; the paper recommends (0.7, 1) with betas (0.995, 0.999).",),
    ),
    Rule(
        "adabound", "AdaBound",
        "Adam whose rates are clamped between bounds that close in on the rate of an SGD",
        "m, v as adam; r = lr*sqrt(1 - beta2^t)/(1 - beta1^t)/(sqrt(v) + eps) clamped to "
        "[f*(1 - 1/(gamma*t + 1)), f*(1 + 1/(gamma*t))], f = final_lr*lr/base_lr; p -= r*m",
        "Luo et al. 2019, arXiv:1902.09843; the authors' package adabound",
        _ADABOUND, adabound, fold_adabound, _MOMENTS,
    ),
    Rule(
        "amsbound", "AMSBound",
        "AdaBound with the largest average of squares so far",
        "as adabound, with x = max(x, v) in place of v",
        "Luo et al. 2019, arXiv:1902.09843; the authors' package adabound (amsbound=True)",
        _ADABOUND, amsbound, fold_adabound, _MAX_MOMENTS,
    ),
)  # fmt: skip
