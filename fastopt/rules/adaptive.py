"""Rules with an average or a sum of squared gradients, and no bias correction: Adagrad, Adadelta, RMSprop."""

from __future__ import annotations

from .base import EPS, EPS_ROOT, LR, Hyper, Rule, Stage, State, flag, nonnegative, squared_gradient
from .momentum import sgd
from .primitives import sqrt, where


def adagrad(p, g, sum, lr, eps, eps_root):
    sum = sum + g * g
    return p - lr * g / (sqrt(sum + eps_root) + eps), sum


def fold_adagrad(t, lr, lr_decay, eps, eps_root):
    return lr / (1.0 + (t - 1.0) * lr_decay), eps, eps_root


def rowwise_adagrad(square, sum, lr, eps, eps_root):
    sum = sum + square
    return sum, lr / (sqrt(sum + eps_root) + eps)


def adadelta(p, g, square_avg, acc_delta, rho, rho_c, eps, lr):
    square_avg = rho * square_avg + rho_c * g * g
    delta = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * g
    acc_delta = rho * acc_delta + rho_c * delta * delta
    return p - lr * delta, square_avg, acc_delta


def fold_adadelta(t, lr, rho, eps):
    return rho, 1.0 - rho, eps, lr


def rmsprop(p, g, square_avg, alpha, alpha_c, eps, eps_root, lr):
    square_avg = alpha * square_avg + alpha_c * g * g
    return p - lr * g / (sqrt(square_avg + eps_root) + eps), square_avg


def fold_rmsprop(t, lr, alpha, eps, eps_root):
    return alpha, 1.0 - alpha, eps, eps_root, lr


def rmsprop_momentum(p, g, square_avg, momentum_buffer, alpha, alpha_c, eps, eps_root, momentum, gain, rate):
    square_avg = alpha * square_avg + alpha_c * g * g
    momentum_buffer = momentum * momentum_buffer + gain * g / (sqrt(square_avg + eps_root) + eps)
    return p - rate * momentum_buffer, square_avg, momentum_buffer


def fold_rmsprop_momentum(t, lr, alpha, eps, eps_root, momentum, lr_inside):
    gain, rate = (lr, 1.0) if lr_inside else (1.0, lr)
    return alpha, 1.0 - alpha, eps, eps_root, momentum, gain, rate


def rmsprop_centered(p, g, square_avg, grad_avg, alpha, alpha_c, eps, eps_root, lr):
    square_avg = alpha * square_avg + alpha_c * g * g
    grad_avg = alpha * grad_avg + alpha_c * g
    w = square_avg - grad_avg * grad_avg
    w = where(w > 0, w, w - w)  # a zero of w's own type, and NaN where w is NaN
    return p - lr * g / (sqrt(w + eps_root) + eps), square_avg, grad_avg


def rmsprop_centered_momentum(
    p, g, square_avg, momentum_buffer, grad_avg, alpha, alpha_c, eps, eps_root, momentum, gain, rate
):
    square_avg = alpha * square_avg + alpha_c * g * g
    grad_avg = alpha * grad_avg + alpha_c * g
    w = square_avg - grad_avg * grad_avg
    w = where(w > 0, w, w - w)  # a zero of w's own type, and NaN where w is NaN
    momentum_buffer = momentum * momentum_buffer + gain * g / (sqrt(w + eps_root) + eps)
    return p - rate * momentum_buffer, square_avg, momentum_buffer, grad_avg


def ftrl(p, g, accumulator, linear, inverse_lr, l1, curvature):
    still = inverse_lr == 0
    square = g * g
    sum = where(still, accumulator, accumulator + square)
    root = sqrt(sum)
    roots = sqrt(accumulator) + root
    # g*(g/roots) is root - sqrt(accumulator), of which no digit is lost.
    pull = where(square == 0, square, g * (g / roots) * inverse_lr * p)
    linear = where(still, linear, linear + (g - pull))
    shrunk = where(linear > l1, l1, where(linear < -l1, -l1, linear)) - linear
    after = where(shrunk == 0, shrunk, shrunk / (root * inverse_lr + curvature))
    return where(still, p, after), sum, linear


def fold_ftrl(t, lr, beta, l1, l2):
    return (1.0 / lr, l1, beta / lr + l2) if lr else (0.0, l1, 0.0)


_ADAGRAD = {
    "lr": nonnegative(1e-2, LR),
    "lr_decay": nonnegative(0.0, "decay of the learning rate with the step"),
    "initial_accumulator_value": nonnegative(0.0, "what the sum of squares begins at"),
    "eps": nonnegative(1e-10, EPS),
    "eps_root": nonnegative(0.0, EPS_ROOT),
}
_RMSPROP = {
    "lr": nonnegative(1e-2, LR),
    "alpha": nonnegative(0.99, "decay rate of the averages"),
    "initial_square_avg": nonnegative(0.0, "what the average of squares begins at: 1 in TensorFlow 1"),
    "eps": nonnegative(1e-8, EPS),
    "eps_root": nonnegative(0.0, EPS_ROOT),
}
_RMSPROP_MOMENTUM = {
    **_RMSPROP,
    "momentum": nonnegative(0.9, "decay rate of the velocity"),
    "lr_inside": flag(False, "the velocity accumulates steps, lr and all (differs once lr changes)"),
}
_SQUARE_AVG = State("square_avg", positive=True, begins="initial_square_avg")
_SUM = State("sum", positive=True, begins="initial_accumulator_value")
_LR_INSIDE = (
    "``lr_inside=True`` is the form of Graves, Keras, optax and TensorFlow: b = momentum*b + lr*g/(...); p -= b."
)
_CLAMPED = "torch does not clamp the variance at 0, and gives NaN where rounding makes it negative."
_TIELEMAN = "Tieleman and Hinton 2012, lecture 6.5"
_GRAVES = "Graves 2013, arXiv:1308.0850"

RULES = (
    Rule(
        "adagrad", "Adagrad",
        "The gradient over the root of the sum of all squared gradients",
        "s += g^2; p -= lr_t*g/(sqrt(s + eps_root) + eps), lr_t = lr/(1 + (t - 1)*lr_decay)",
        "Duchi et al. 2011; torch.optim.Adagrad",
        _ADAGRAD,
        adagrad, fold_adagrad, (_SUM,), begun=True,
    ),
    Rule(
        "rowwise_adagrad", "RowwiseAdagrad",
        "Adagrad with one sum of squares for each row, for embedding tables",
        "s += mean of g^2 over the row; p -= lr_t/(sqrt(s + eps_root) + eps)*g, lr_t = lr/(1 + (t - 1)*lr_decay)",
        "Duchi et al. 2011, by row as FBGEMM's EXACT_ROWWISE_ADAGRAD",
        _ADAGRAD,
        sgd, fold_adagrad, (_SUM,), stage=Stage("row", squared_gradient, rowwise_adagrad),
        notes=("The state has one element for each row of the parameter (its first axis).",),
    ),
    Rule(
        "adadelta", "Adadelta",
        "The gradient times the root of the average squared step over that of the average squared gradient",
        "s = rho*s + (1 - rho)*g^2; d = sqrt(u + eps)/sqrt(s + eps)*g; u = rho*u + (1 - rho)*d^2; p -= lr*d",
        "Zeiler 2012, arXiv:1212.5701; torch.optim.Adadelta",
        {
            "lr": nonnegative(1.0, LR),
            "rho": Hyper(0.9, "decay rate of both averages", low=0.0, high=1.0),
            "eps": nonnegative(1e-6, "added under both square roots"),
        },
        adadelta, fold_adadelta, (State("square_avg", positive=True), State("acc_delta", positive=True)),
    ),
    Rule(
        "rmsprop", "RMSprop",
        "The gradient over the root of the average squared gradient",
        "s = alpha*s + (1 - alpha)*g^2; p -= lr*g/(sqrt(s + eps_root) + eps)",
        f"{_TIELEMAN}; torch.optim.RMSprop",
        _RMSPROP, rmsprop, fold_rmsprop, (_SQUARE_AVG,),
    ),
    Rule(
        "rmsprop_momentum", "RMSprop",
        "RMSprop with momentum: a decaying sum of its steps",
        "s = alpha*s + (1 - alpha)*g^2; b = momentum*b + g/(sqrt(s + eps_root) + eps); p -= lr*b",
        f"{_TIELEMAN}; torch.optim.RMSprop(momentum=)",
        _RMSPROP_MOMENTUM, rmsprop_momentum, fold_rmsprop_momentum, (_SQUARE_AVG, State("momentum_buffer")),
        notes=(_LR_INSIDE,),
    ),
    Rule(
        "rmsprop_centered", "RMSprop",
        "RMSprop with the gradient's variance in place of its mean square",
        "as rmsprop, with a = alpha*a + (1 - alpha)*g and max(s - a^2, 0) in place of s",
        f"{_GRAVES}; torch.optim.RMSprop(centered=True)",
        _RMSPROP, rmsprop_centered, fold_rmsprop, (_SQUARE_AVG, State("grad_avg")),
        notes=(_CLAMPED,),
    ),
    Rule(
        "rmsprop_centered_momentum", "RMSprop",
        "Centered RMSprop with momentum: a decaying sum of its steps",
        "as rmsprop_momentum, with a = alpha*a + (1 - alpha)*g and max(s - a^2, 0) in place of s",
        f"{_GRAVES}; torch.optim.RMSprop(centered=True, momentum=)",
        _RMSPROP_MOMENTUM, rmsprop_centered_momentum, fold_rmsprop_momentum,
        (_SQUARE_AVG, State("momentum_buffer"), State("grad_avg")),
        notes=(_LR_INSIDE, _CLAMPED),
    ),
    Rule(
        "ftrl", "FTRL",
        "Follow the regularised leader: Adagrad's rates, and parameters that an L1 penalty makes exactly 0",
        "z += g - (sqrt(n + g^2) - sqrt(n))/lr*p; n += g^2; p = 0 where |z| <= l1, else "
        "(sign(z)*l1 - z)/((beta + sqrt(n))/lr + l2)",
        "McMahan et al. 2013, Ad click prediction, algorithm 1",
        {
            "lr": nonnegative(1e-3, f"{LR} (alpha in the paper)"),
            "initial_accumulator_value": nonnegative(0.0, "what n begins at"),
            "beta": nonnegative(1.0, "added to the square root of n"),
            "l1": nonnegative(0.0, "L1 penalty, which makes parameters exactly 0"),
            "l2": nonnegative(0.0, "L2 penalty, on the parameter that the sums lead to"),
        },
        ftrl, fold_ftrl,
        (State("accumulator", positive=True, begins="initial_accumulator_value"), State("linear")),
        notes=(
            "n is ``accumulator``, z ``linear``. The parameter follows from them: what it was at first is forgotten, "
            "but for its part in z. At ``lr=0`` all stays as it is. Keras's and TensorFlow's l2 is half of this one.",
        ),
    ),
)  # fmt: skip
