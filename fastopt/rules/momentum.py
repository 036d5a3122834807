"""SGD and the rules with averages of the gradient alone, or of its sign."""

from __future__ import annotations

from .base import LR, POSITIVE, REQUIRED, Hyper, Rule, State, flag, fraction, nonnegative, number
from .primitives import where


def sgd(p, g, lr):
    return p - lr * g


def fold_sgd(t, lr):
    return (lr,)


def momentum(p, g, momentum_buffer, mu, gain, rate):
    momentum_buffer = mu * momentum_buffer + gain * g
    return p - rate * momentum_buffer, momentum_buffer


def fold_momentum(t, lr, momentum, dampening, lr_inside):
    gain = 1.0 if t == 1.0 else 1.0 - dampening
    return (momentum, gain * lr, 1.0) if lr_inside else (momentum, gain, lr)


def nesterov(p, g, momentum_buffer, mu, gain, rate_g, rate_b):
    momentum_buffer = mu * momentum_buffer + gain * g
    return p - (rate_g * g + rate_b * momentum_buffer), momentum_buffer


def fold_nesterov(t, lr, momentum, dampening, lr_inside):
    gain = 1.0 if t == 1.0 else 1.0 - dampening
    return (momentum, gain * lr, lr, momentum) if lr_inside else (momentum, gain, lr, lr * momentum)


def qhm(p, g, momentum_buffer, beta, beta_c, rate_g, rate_b):
    momentum_buffer = beta * momentum_buffer + beta_c * g
    return p - (rate_b * momentum_buffer + rate_g * g), momentum_buffer


def fold_qhm(t, lr, momentum, nu):
    return momentum, 1.0 - momentum, lr * (1.0 - nu), lr * nu


def aggmo(p, g, momentum_buffer, beta, rate):
    momentum_buffer = beta * momentum_buffer + g
    return p - rate * momentum_buffer, momentum_buffer


def fold_aggmo(t, lr, betas, copies):
    return betas, lr / copies


def lion(p, g, exp_avg, beta1, beta1_c, beta2, beta2_c, lr):
    b = beta1 * exp_avg + beta1_c * g
    return p - where(b > 0, lr, where(b < 0, -lr, b)), beta2 * exp_avg + beta2_c * g


def fold_lion(t, lr, beta1, beta2):
    return beta1, 1.0 - beta1, beta2, 1.0 - beta2, lr


def signsgd(p, g, momentum_buffer, beta, beta_c, lr):
    momentum_buffer = beta * momentum_buffer + beta_c * g
    return p - where(momentum_buffer > 0, lr, where(momentum_buffer < 0, -lr, momentum_buffer)), momentum_buffer


def fold_signsgd(t, lr, momentum):
    return momentum, 1.0 - momentum, lr


def schedule_free_sgd(p, g, z_offset, gain, rest, rate, weight):
    return p - (rate * g - weight * z_offset), rest * (z_offset - gain * g)


def fold_schedule_free_sgd(t, lr, momentum, warmup_steps, weight_step_power, weight_lr_power, weight_sum, lr_max):
    rate = lr * (t / warmup_steps) if t < warmup_steps else lr
    before, lr_max = lr_max, rate if rate > lr_max else lr_max
    if lr_max > 0.0:
        weight_sum = weight_sum * (before / lr_max) ** weight_lr_power
    share = t**weight_step_power if lr_max > 0.0 or weight_lr_power == 0.0 else 0.0
    weight_sum = weight_sum + share
    weight = share / weight_sum if weight_sum > 0.0 else 0.0
    rest = 1.0 - weight
    return rate * momentum, rest, rate * (1.0 - momentum * rest), weight, weight_sum, lr_max


def asgd(p, g, ax, shrink, rate, mu, mu_c):
    p = shrink * p - rate * g
    # While mu is 1 the average is the parameter, whatever it was.
    return p, where(mu_c == 0, p, mu_c * ax + mu * p)


def fold_asgd(t, lr, lambd, alpha, t0, eta, mu):
    eta = lr if t == 1.0 else eta
    base = 1.0 + lambd * lr * t
    next_eta = lr / base**alpha if base > 0.0 else 0.0
    next_mu = 1.0 / (t - t0) if t - t0 > 1.0 else 1.0
    return 1.0 - lambd * eta, eta, mu, 1.0 - mu, next_eta, next_mu


def rprop(p, g, prev, step_size, etaminus, etaplus, smallest, largest):
    agreement = g * prev
    # NaN where g is; where an infinite one met a 0, as it was.
    size = where(agreement > 0, etaplus * step_size, where(agreement < 0, etaminus * step_size, step_size))
    size = where(size < smallest, smallest, where(size > largest, largest, size))
    size = where(g == g, size, g)
    g = where(agreement < 0, etaplus - etaplus, g)
    return p - where(g > 0, size, where(g < 0, -size, g)), g, size


def fold_rprop(t, lr, etaminus, etaplus, step_size_min, step_size_max):
    return etaminus, etaplus, step_size_min, step_size_max


#: What the Schedule-Free rules have beyond a learning rate and decay rates.
SCHEDULE_FREE = {
    "warmup_steps": nonnegative(0.0, "steps over which the learning rate rises from 0"),
    "weight_step_power": Hyper(0.0, "power of the step's number in its weight (r in the paper)", low=0.0, high=10.0),
    "weight_lr_power": nonnegative(2.0, "power of the largest learning rate so far in a step's weight"),
}


def between(beta, meaning, **options):
    """How near the gradient is taken to the average: in (0, 1)."""
    return Hyper(beta, meaning, low=POSITIVE, high=1.0, below_high=True, **options)


_MOMENTUM = {
    "lr": nonnegative(1e-3, LR),
    "momentum": nonnegative(0.9, "decay rate of the velocity"),
    "dampening": number(0.0, "the gradient enters the velocity times 1 - dampening, from the second step on"),
    "lr_inside": flag(False, "the velocity accumulates lr*g instead of g (differs once lr changes)"),
}

RULES = (
    Rule(
        "sgd", "SGD",
        "Stochastic gradient descent: a step against the gradient",
        "p -= lr*g",
        "Robbins and Monro 1951; torch.optim.SGD",
        {"lr": nonnegative(1e-3, LR)},
        sgd, fold_sgd, counted=False,
    ),
    Rule(
        "momentum", "Momentum",
        "Gradient descent with momentum: a step against a decaying sum of the gradients",
        "b = momentum*b + (1 - dampening)*g, the first step b = g; p -= lr*b",
        "Polyak 1964; torch.optim.SGD(momentum=)",
        _MOMENTUM,
        momentum, fold_momentum, (State("momentum_buffer"),),
        notes=("``lr_inside=True`` is the form of Ruder's overview and of Keras: b = momentum*b + lr*g; p -= b.",),
    ),
    Rule(
        "nesterov", "NAG",
        "Nesterov's accelerated gradient: momentum, with the gradient at the point ahead",
        "b = momentum*b + (1 - dampening)*g, the first step b = g; p -= lr*(g + momentum*b)",
        "Nesterov 1983, in the form of Sutskever et al. 2013; torch.optim.SGD(nesterov=True)",
        _MOMENTUM,
        nesterov, fold_nesterov, (State("momentum_buffer"),),
        notes=(
            "The parameter array holds the look-ahead point theta - momentum*v of the literal form "
            "v = momentum*v + lr*grad(theta - momentum*v); theta -= v, at which the gradient is to be taken.",
        ),
    ),
    Rule(
        "qhm", "QHM",
        "Quasi-hyperbolic momentum: a step against a weighted mean of the gradient and its average",
        "b = momentum*b + (1 - momentum)*g; p -= lr*(nu*b + (1 - nu)*g)",
        "Ma and Yarats 2019, arXiv:1810.06801",
        {
            "lr": nonnegative(REQUIRED, LR),
            "momentum": fraction(0.999, "decay rate of the gradient's average (beta in the paper)"),
            "nu": Hyper(0.7, "weight of the average against the gradient", low=0.0, high=1.0),
        },
        qhm, fold_qhm, (State("momentum_buffer"),),
    ),
    Rule(
        "aggmo", "AggMo",
        "Aggregated momentum: a step against the mean of several velocities, each with its own decay rate",
        "b_k = beta_k*b_k + g for each k; p -= lr/K * sum of b_k",
        "Lucas et al. 2019, arXiv:1804.00325",
        {
            "lr": nonnegative(1e-3, LR),
            "betas": fraction((0.0, 0.9, 0.99), "decay rates of the K velocities", vector=True),
        },
        aggmo, fold_aggmo, (State("momentum_buffer"),),
        notes=("The state has shape (K, *shape of the parameter). Velocities are subtracted one after the other.",),
    ),
    Rule(
        "lion", "Lion",
        "Evolved sign momentum: a step of lr against the sign of a weighted mean of the average and the gradient",
        "p -= lr*weight_decay*p; p -= lr*sign(beta1*m + (1 - beta1)*g); m = beta2*m + (1 - beta2)*g",
        "Chen et al. 2023, arXiv:2302.06675",
        {
            "lr": nonnegative(1e-4, LR),
            "beta1": fraction(0.9, "weight of the average against the gradient in a step", part_of="betas"),
            "beta2": fraction(0.99, "decay rate of the gradient's average", part_of="betas"),
        },
        lion, fold_lion, (State("exp_avg"),), decoupled=0.0, bounded=True,
    ),
    Rule(
        "signsgd", "SignSGD",
        "A step of lr against the sign of the gradient's average (Signum)",
        "b = momentum*b + (1 - momentum)*g; p -= lr*sign(b)",
        "Bernstein et al. 2018, arXiv:1802.04434",
        {
            "lr": nonnegative(1e-3, LR),
            "momentum": fraction(0.9, "decay rate of the gradient's average"),
        },
        signsgd, fold_signsgd, (State("momentum_buffer"),), bounded=True,
        notes=("``momentum=0`` is signSGD, whose step is against the sign of the gradient itself.",),
    ),
    Rule(
        "schedule_free_sgd", "ScheduleFreeSGD",
        "SGD without a schedule: iterates z are averaged to x, and gradients are taken in between",
        "d = z - p; p -= gamma*(1 - momentum*(1 - c))*g - c*d; d = (1 - c)*(d - gamma*momentum*g), "
        "gamma = lr*min(1, t/warmup_steps), c = w_t/sum of w_{<=t}, "
        "w_t = t^weight_step_power*(max gamma_{<=t})^weight_lr_power",
        "Defazio et al. 2024, arXiv:2405.15682; the authors' package schedulefree",
        {
            "lr": nonnegative(1.0, LR),
            "momentum": between(0.9, "where the gradient is taken: 1 at the average x, 0 at z"),
            **SCHEDULE_FREE,
        },
        schedule_free_sgd, fold_schedule_free_sgd, (State("z_offset"),),
        scalars={"weight_sum": 0.0, "lr_max": 0.0},
        ahead=lambda momentum: (1.0 - momentum) / momentum,
        notes=(
            "In the paper's letters p is y = (1 - momentum)*z + momentum*x, and ``z_offset`` z - y. What is to be "
            "evaluated is x = y - (1 - momentum)/momentum*z_offset. ``weight_sum`` is in units of the largest weight "
            "that a learning rate gave so far.",
        ),
    ),
    Rule(
        "asgd", "ASGD",
        "Averaged SGD: a step against the gradient at a decaying rate, beside the average of the parameters",
        "p = (1 - lambd*eta)*p - eta*g, eta = lr/(1 + lambd*lr*(t - 1))^alpha; a = a + mu*(p - a), "
        "mu = 1/max(1, t - 1 - t0)",
        "Polyak and Juditsky 1992, at the rates of Bottou 2010; torch.optim.ASGD",
        {
            "lr": nonnegative(1e-2, LR),
            "lambd": number(1e-4, "decay of the parameter, times eta"),
            "alpha": number(0.75, "power by which the rate eta decays"),
            "t0": number(1e6, "steps before the average begins"),
        },
        asgd, fold_asgd, (State("ax"),), scalars={"eta": 0.0, "mu": 1.0},
        notes=("The state ``ax`` is the average; a step's eta comes from the lr of the step before.",),
    ),
    Rule(
        "rprop", "Rprop",
        "Resilient backpropagation: steps against the gradient's sign, longer while it stays, shorter if it turns",
        "s = min(s*etaplus, largest) where g*prev > 0, max(s*etaminus, smallest) where g*prev < 0, and there g = 0; "
        "p -= s*sign(g); prev = g",
        "Riedmiller and Braun 1993; torch.optim.Rprop",
        {
            "lr": nonnegative(1e-2, "length of the first step"),
            "etaminus": Hyper(
                0.5, "factor of the step's length where the sign turns",
                low=POSITIVE, high=1.0, below_high=True, part_of="etas",
            ),
            "etaplus": Hyper(1.2, "factor where it stays", low=1.0, part_of="etas"),
            "step_size_min": Hyper(1e-6, "the shortest step", part_of="step_sizes"),
            "step_size_max": Hyper(50.0, "the longest step", part_of="step_sizes"),
        },
        rprop, fold_rprop, (State("prev"), State("step_size", positive=True, begins="lr")), bounded=True,
        notes=("Gradients are to be those of all data: with batches their signs turn by chance.",),
    ),
)  # fmt: skip
