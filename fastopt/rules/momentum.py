"""SGD and the rules with averages of the gradient alone."""

from __future__ import annotations

from .base import LR, REQUIRED, Hyper, Rule, State, flag, fraction, nonnegative, number


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
)  # fmt: skip
