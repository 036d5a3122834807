"""Adam and its family: averages of the gradient and of its square, with bias correction."""

from __future__ import annotations

from .base import EPS, EPS_ROOT, LR, POSITIVE, Hyper, Rule, State, flag, fraction, nonnegative
from .momentum import SCHEDULE_FREE, between, fold_schedule_free_sgd
from .primitives import exp, isnan, log, maximum, sqrt, where


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


def adabelief(p, g, exp_avg, exp_avg_var, beta1, beta1_c, beta2, beta2_c, rate, eps, eps_root):
    exp_avg = beta1 * exp_avg + beta1_c * g
    surprise = g - exp_avg
    exp_avg_var = beta2 * exp_avg_var + beta2_c * surprise * surprise + eps_root
    return p - rate * exp_avg / (sqrt(exp_avg_var) + eps), exp_avg, exp_avg_var


def fold_adabelief(t, lr, beta1, beta2, eps, eps_root):
    root = sqrt(1.0 - beta2**t)  # as in fold_adam
    return beta1, 1.0 - beta1, beta2, 1.0 - beta2, lr * root / (1.0 - beta1**t), eps * root, eps_root


def radam(p, g, exp_avg, exp_avg_sq, beta1, beta1_c, beta2, beta2_c, rate, eps, adaptive):
    exp_avg = beta1 * exp_avg + beta1_c * g
    exp_avg_sq = beta2 * exp_avg_sq + beta2_c * g * g
    return p - rate * exp_avg / where(adaptive == 0, eps, sqrt(exp_avg_sq) + eps), exp_avg, exp_avg_sq


def fold_radam(t, lr, beta1, beta2, eps, eps_hat):
    correction1, correction2 = 1.0 - beta1**t, 1.0 - beta2**t
    longest = 2.0 / (1.0 - beta2) - 1.0
    length = longest - 2.0 * t * beta2**t / correction2
    rate, adaptive = lr / correction1, 0.0
    if length > 5.0:
        tractable = (length - 4.0) * (length - 2.0) * longest
        rectified = sqrt(tractable / ((longest - 4.0) * (longest - 2.0) * length))
        root = sqrt(correction2)
        rate, eps, adaptive = rate * root * rectified, (eps if eps_hat else eps * root), 1.0
    else:
        eps = 1.0  # the denominator
    return beta1, 1.0 - beta1, beta2, 1.0 - beta2, rate, eps, adaptive


def adan(
    p, g, exp_avg, exp_avg_diff, exp_avg_sq, neg_pre_grad,
    beta1, beta1_c, beta2, beta2_c, beta3, beta3_c, weight, past, rate, rate_diff, eps, eps_root, shrink,
):  # fmt: skip
    difference = where(past == 0, past, g + neg_pre_grad)
    exp_avg = beta1 * exp_avg + beta1_c * g
    exp_avg_diff = beta2 * exp_avg_diff + beta2_c * difference
    ahead = g + weight * difference
    exp_avg_sq = beta3 * exp_avg_sq + beta3_c * ahead * ahead
    p = p - (rate * exp_avg + rate_diff * exp_avg_diff) / (sqrt(exp_avg_sq + eps_root) + eps)
    return p * shrink, exp_avg, exp_avg_diff, exp_avg_sq, -g


def fold_adan(t, lr, beta1, beta2, beta3, eps, eps_root, difference_weight, proximal_weight_decay):
    weight = beta2 if isnan(difference_weight) else difference_weight  # None: beta2
    correction3 = 1.0 - beta3**t
    root = sqrt(correction3)  # as in fold_adam
    rate, rate_diff = lr * root / (1.0 - beta1**t), lr * weight * root / (1.0 - beta2**t)
    past, shrink = 0.0 if t == 1.0 else 1.0, 1.0 / (1.0 + lr * proximal_weight_decay)
    averages = beta1, 1.0 - beta1, beta2, 1.0 - beta2, beta3, 1.0 - beta3
    return (*averages, weight, past, rate, rate_diff, eps * root, eps_root * correction3, shrink)


def ademamix(
    p, g, exp_avg, exp_avg_slow, exp_avg_sq,
    beta1, beta1_c, beta2, beta2_c, beta3, beta3_c, rate, rate_slow, eps, eps_root,
):  # fmt: skip
    exp_avg = beta1 * exp_avg + beta1_c * g
    exp_avg_slow = beta3 * exp_avg_slow + beta3_c * g
    exp_avg_sq = beta2 * exp_avg_sq + beta2_c * g * g
    p = p - (rate * exp_avg + rate_slow * exp_avg_slow) / (sqrt(exp_avg_sq + eps_root) + eps)
    return p, exp_avg, exp_avg_slow, exp_avg_sq


def fold_ademamix(t, lr, beta1, beta2, beta3, alpha, warmup, eps, eps_root):
    if t < warmup:  # never where it is NaN: None
        done = t / warmup
        first, last = 1.0 / log(beta1) if beta1 > 0.0 else 0.0, 1.0 / log(beta3) if beta3 > 0.0 else 0.0
        memory = (1.0 - done) * first + done * last
        beta3, alpha = exp(1.0 / memory) if memory < 0.0 else 0.0, alpha * done
    correction2 = 1.0 - beta2**t
    root = sqrt(correction2)  # as in fold_adam
    rate, rate_slow = lr * root / (1.0 - beta1**t), lr * root * alpha
    averages = beta1, 1.0 - beta1, beta2, 1.0 - beta2, beta3, 1.0 - beta3
    return (*averages, rate, rate_slow, eps * root, eps_root * correction2)


def schedule_free_adamw(p, g, z_offset, exp_avg_sq, beta2, beta2_c, root, eps, decay, gain, rest, rate, weight):
    exp_avg_sq = beta2 * exp_avg_sq + beta2_c * g * g
    direction = root * g / (sqrt(exp_avg_sq) + eps)
    decayed = direction + decay * p
    direction = where(decay == 0, direction, decayed)  # as in the prologue
    p = p - (rate * direction - weight * z_offset)
    return p, rest * (z_offset - gain * direction), exp_avg_sq


def fold_schedule_free_adamw(
    t, lr, beta1, beta2, eps, warmup_steps, weight_step_power, weight_lr_power, weight_decay, weight_sum, lr_max
):
    c = fold_schedule_free_sgd(t, lr, beta1, warmup_steps, weight_step_power, weight_lr_power, weight_sum, lr_max)
    root = sqrt(1.0 - beta2**t)  # as in fold_adam
    return (beta2, 1.0 - beta2, root, eps * root, weight_decay, *c)


_BETAS = {
    "beta1": fraction(0.9, "decay rate of the gradient's average", part_of="betas"),
    "beta2": fraction(0.999, "decay rate of the squared gradient's average", part_of="betas"),
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
            "nu1": Hyper(1.0, "weight of the average against the gradient", low=0.0, high=1.0, part_of="nus"),
            "nu2": Hyper(
                1.0, "weight of the average against the squared gradient", low=0.0, high=1.0, part_of="nus"
            ),
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
    Rule(
        "adabelief", "AdaBelief",
        "Adam with the average square of the gradient's distance from its average in place of its own",
        "m = beta1*m + (1 - beta1)*g; s = beta2*s + (1 - beta2)*(g - m)^2 + eps_root; "
        "p -= lr*m^/(sqrt(s^) + eps), m^ = m/(1 - beta1^t), s^ = s/(1 - beta2^t)",
        "Zhuang et al. 2020, arXiv:2010.07468",
        {
            "lr": nonnegative(1e-3, LR),
            **_BETAS,
            "eps": nonnegative(1e-16, EPS),
            "eps_root": nonnegative(1e-16, "added to the average of squares at each step"),
        },
        adabelief, fold_adabelief, (State("exp_avg"), State("exp_avg_var", positive=True)),
    ),
    Rule(
        "radam", "RAdam",
        "Adam with a rate that is rectified for the variance of young averages of squares; before, momentum",
        "m, v as adam; rho = rho_inf - 2*t*beta2^t/(1 - beta2^t), rho_inf = 2/(1 - beta2) - 1; "
        "p -= lr*m^*r*sqrt(1 - beta2^t)/(sqrt(v) + eps) where rho > 5, else p -= lr*m^, "
        "r = sqrt((rho - 4)*(rho - 2)*rho_inf/((rho_inf - 4)*(rho_inf - 2)*rho))",
        "Liu et al. 2020, arXiv:1908.03265; torch.optim.RAdam",
        {
            "lr": nonnegative(1e-3, LR),
            **_BETAS,
            "eps": nonnegative(1e-8, EPS),
            "eps_hat": flag(True, "add eps to sqrt(v), as torch; else to sqrt(v^)"),
        },
        radam, fold_radam, _MOMENTS,
    ),
    Rule(
        "adan", "Adan",
        "Adam with Nesterov's momentum from averages of the gradient and of its change",
        "d = g - prev, 0 at first; m = beta1*m + (1 - beta1)*g; v = beta2*v + (1 - beta2)*d; "
        "n = beta3*n + (1 - beta3)*(g + beta2*d)^2; "
        "p -= lr*weight_decay*p; p -= lr*(m^ + beta2*v^)/(sqrt(n^ + eps_root) + eps), m^ = m/(1 - beta1^t), "
        "v^ = v/(1 - beta2^t), n^ = n/(1 - beta3^t); p /= 1 + lr*proximal_weight_decay",
        "Xie et al. 2022, arXiv:2208.06677; the authors' code, sail-sg/Adan",
        {
            "lr": nonnegative(1e-3, LR),
            "beta1": fraction(0.98, "decay rate of the gradient's average", part_of="betas"),
            "beta2": fraction(0.92, "decay rate of the average of its change", part_of="betas"),
            "beta3": fraction(0.99, "decay rate of the average of squares", part_of="betas"),
            "eps": nonnegative(1e-8, EPS),
            "eps_root": nonnegative(0.0, EPS_ROOT),
            "difference_weight": Hyper(
                None, "weight of the gradient's change in a step; None: beta2", low=0.0, optional=True
            ),
            "proximal_weight_decay": nonnegative(0.0, "the parameter is divided by 1 + lr times it, after the update"),
        },
        adan, fold_adan,
        (State("exp_avg"), State("exp_avg_diff"), State("exp_avg_sq", positive=True), State("neg_pre_grad")),
        decoupled=0.0,
        notes=(
            "``proximal_weight_decay`` is the authors' ``weight_decay``, ``weight_decay`` the same with their "
            "``no_prox=True``. The state ``neg_pre_grad`` is -1 times the gradient before.",
        ),
    ),
    Rule(
        "ademamix", "AdEMAMix",
        "Adam with a second, slow average of the gradient",
        "m, v as adam; s = beta3*s + (1 - beta3)*g; "
        "p -= lr*weight_decay*p; p -= lr*(m^ + alpha*s)/(sqrt(v^ + eps_root) + eps)",
        "Pagliardini et al. 2024, arXiv:2409.03137; Apple's ml-ademamix",
        {
            "lr": nonnegative(1e-3, LR),
            "beta1": fraction(0.9, "decay rate of the gradient's fast average", part_of="betas"),
            "beta2": fraction(0.999, "decay rate of the squared gradient's average", part_of="betas"),
            "beta3": fraction(0.9999, "decay rate of the gradient's slow average", part_of="betas"),
            "alpha": nonnegative(5.0, "weight of the slow average"),
            "warmup": Hyper(
                None, "steps over which alpha grows from 0, and the half-life of the slow average from the fast one's; "
                "None: none",
                low=POSITIVE, optional=True,
            ),
            "eps": nonnegative(1e-8, EPS),
            "eps_root": nonnegative(0.0, EPS_ROOT),
        },
        ademamix, fold_ademamix, (State("exp_avg"), State("exp_avg_slow"), State("exp_avg_sq", positive=True)),
        decoupled=0.0,
    ),
    Rule(
        "schedule_free_adamw", "ScheduleFreeAdamW",
        "AdamW without a schedule: iterates z are averaged to x, and gradients are taken in between",
        "d = z - p; v = beta2*v + (1 - beta2)*g^2; u = weight_decay*p + g/(sqrt(v/(1 - beta2^t)) + eps); "
        "p -= gamma*(1 - beta1*(1 - c))*u - c*d; d = (1 - c)*(d - gamma*beta1*u), gamma and c as schedule_free_sgd",
        "Defazio et al. 2024, arXiv:2405.15682; the authors' package schedulefree",
        {
            "lr": nonnegative(0.0025, LR),
            "beta1": between(0.9, "where the gradient is taken: 1 at the average x, 0 at z", part_of="betas"),
            "beta2": _BETAS["beta2"],
            "eps": nonnegative(1e-8, EPS),
            **SCHEDULE_FREE,
        },
        schedule_free_adamw, fold_schedule_free_adamw, (State("z_offset"), State("exp_avg_sq", positive=True)),
        scalars={"weight_sum": 0.0, "lr_max": 0.0}, decoupled=0.0,
        ahead=lambda beta1: (1.0 - beta1) / beta1,
        notes=(
            "In the paper's letters p is y = (1 - beta1)*z + beta1*x, and ``z_offset`` z - y. What is to be evaluated "
            "is x = y - (1 - beta1)/beta1*z_offset. The decay is of the direction, at y.",
        ),
    ),
)  # fmt: skip
