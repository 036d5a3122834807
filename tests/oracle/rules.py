# SPDX-License-Identifier: Apache-2.0
"""The rules, one step each: `t` is the 1-based step, `g` the gradient after the prologue; see `harness.oracle`.

Options beyond a paper's own (`eps_root`, `dampening`, ...) stand where the implementation that has them puts them.
"""

import numpy as np

from .harness import ORACLES, oracle

# --- Gradient descent and momentum ---


@oracle()
def sgd(t, g, *, lr=1e-3):
    """Robbins and Monro, 1951."""
    return (lr * g,)


@oracle(b="momentum_buffer")
def momentum(t, g, b, *, lr=1e-3, momentum=0.9, dampening=0.0, lr_inside=False):
    """Polyak, 1964. The buffer holds gradients (torch), or with `lr_inside` steps (Sutskever et al. 2013, Keras)."""
    if lr_inside:
        g = lr * g
    b = g if t == 1 else momentum * b + (1 - dampening) * g
    return (b if lr_inside else lr * b), b


@oracle(b="momentum_buffer")
def nesterov(t, g, b, *, lr=1e-3, momentum=0.9, dampening=0.0, lr_inside=False):
    """Nesterov, 1983, seen at the look-ahead point: the parameter is where the gradient is taken."""
    if lr_inside:
        g = lr * g
    b = g if t == 1 else momentum * b + (1 - dampening) * g
    look_ahead = g + momentum * b
    return (look_ahead if lr_inside else lr * look_ahead), b


@oracle(b="momentum_buffer")
def qhm(t, g, b, *, lr, momentum=0.999, nu=0.7):
    """Ma and Yarats, 2019 (arXiv:1810.06801)."""
    b = momentum * b + (1 - momentum) * g
    return lr * (nu * b + (1 - nu) * g), b


@oracle(b="momentum_buffer")
def aggmo(t, g, b, *, lr=1e-3, betas=(0.0, 0.9, 0.99)):
    """Lucas et al., 2019 (arXiv:1804.00325). One buffer a beta, stacked along the first axis."""
    if t == 1:
        b = [np.zeros_like(g)] * len(betas)
    b = np.stack([beta_k * b_k + g for beta_k, b_k in zip(betas, b, strict=True)])
    return lr / len(betas) * b.sum(axis=0), b


@oracle(b="momentum_buffer")
def signsgd(t, g, b, *, lr=1e-3, momentum=0.9):
    """Bernstein et al., 2018 (arXiv:1802.04434), with the momentum of their algorithm 2, Signum."""
    b = momentum * b + (1 - momentum) * g
    return lr * np.sign(b), b


@oracle(m="exp_avg")
def lion(t, g, m, *, lr=1e-4, beta1=0.9, beta2=0.99):
    """Chen et al., 2023 (arXiv:2302.06675), algorithm 2."""
    return lr * np.sign(beta1 * m + (1 - beta1) * g), beta2 * m + (1 - beta2) * g


def _way(p, after):
    """From `after` to `p`; an infinite parameter stays where it is."""
    return np.where(np.isinf(p), 0, p - after)


def _schedule_free(t, direction, d, weights, largest, lr, beta, warmup_steps, step_power, lr_power):
    """Defazio et al., 2024 (arXiv:2405.15682): the step of y, z - y after it, and the sums.

    z and x are where they are from y before the step, so that no digits of a small z - y are lost.
    """
    if t == 1:
        weights = largest = 0.0
    lr = lr * min(1, t / warmup_steps) if warmup_steps else lr
    largest = max(lr, largest)
    w = t**step_power * largest**lr_power
    weights = weights + w
    c = w / weights if weights > 0 else 0
    z, x = d, -(1 - beta) / beta * d
    z = z - lr * direction
    x = (1 - c) * x + c * z
    y = (1 - beta) * z + beta * x
    return -y, z - y, weights, largest


@oracle(d="z_offset")
def schedule_free_sgd(
    t, g, d, weights, largest, *, lr=1.0, momentum=0.9, warmup_steps=0, weight_step_power=0, weight_lr_power=2.0
):
    """Their algorithm 1, with the weights of the authors' package."""
    powers = weight_step_power, weight_lr_power
    return _schedule_free(t, g, d, weights, largest, lr, momentum, warmup_steps, *powers)


@oracle(a="ax")
def asgd(t, g, a, eta, mu, *, lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6, p=None):
    """Polyak and Juditsky, 1992, at Bottou's rates, which are those of torch: step t has what step t - 1 left."""
    if t == 1:
        eta, mu = lr, 1
    after = p * (1 - lambd * eta) - eta * g
    a = after if mu == 1 else a + mu * (after - a)
    return _way(p, after), a, lr / (1 + lambd * lr * t) ** alpha, 1 / max(1, t - t0)


@oracle(before="prev", s="step_size")
def rprop(t, g, before, s, *, lr=1e-2, etaminus=0.5, etaplus=1.2, step_size_min=1e-6, step_size_max=50.0):
    """Riedmiller and Braun, 1993, without going back (iRprop-): a gradient that has turned counts as 0."""
    if t == 1:
        s = np.full_like(g, lr)
    turned, stayed = g * before < 0, g * before > 0
    s = np.where(turned, np.maximum(s * etaminus, step_size_min), s)
    s = np.where(stayed, np.minimum(s * etaplus, step_size_max), s)
    s = np.clip(s, step_size_min, step_size_max)
    s = np.where(np.isnan(g), g, s)
    g = np.where(turned, 0, g)
    return np.sign(g) * s, g, s


def demon(t, T, beta):
    """Chen et al., 2019 (arXiv:1910.04952): a momentum or beta1 that decays to 0 at step T, and stays there."""
    if t >= T:
        return 0.0
    remaining = 1 - t / T
    return beta * remaining / ((1 - beta) + beta * remaining)


# --- Learning rates from the history of squared gradients ---


@oracle(s="sum")
def adagrad(t, g, s, *, lr=1e-2, lr_decay=0.0, initial_accumulator_value=0.0, eps=1e-10, eps_root=0.0):
    """Duchi, Hazan and Singer, 2011."""
    if t == 1:
        s = initial_accumulator_value
    s = s + g**2
    lr_t = lr / (1 + (t - 1) * lr_decay)
    return lr_t * g / (np.sqrt(s + eps_root) + eps), s


@oracle(s="sum")
def rowwise_adagrad(t, g, s, *, lr=1e-2, lr_decay=0.0, initial_accumulator_value=0.0, eps=1e-10, eps_root=0.0):
    """Adagrad with one accumulator a row: the mean of its squares (FBGEMM's documentation)."""
    if t == 1:
        s = np.full(g.shape[:1], initial_accumulator_value, g.dtype)
    s = s + (g**2).mean(axis=tuple(range(1, g.ndim)))
    lr_t = lr / (1 + (t - 1) * lr_decay)
    return lr_t * g / (np.sqrt(s + eps_root) + eps).reshape(s.shape + (1,) * (g.ndim - s.ndim)), s


@oracle(s="square_avg", u="acc_delta")
def adadelta(t, g, s, u, *, lr=1.0, rho=0.9, eps=1e-6):
    """Zeiler, 2012 (arXiv:1212.5701), where lr is 1."""
    s = rho * s + (1 - rho) * g**2
    delta = np.sqrt(u + eps) / np.sqrt(s + eps) * g
    u = rho * u + (1 - rho) * delta**2
    return lr * delta, s, u


@oracle(s="square_avg")
def rmsprop(t, g, s, *, lr=1e-2, alpha=0.99, initial_square_avg=0.0, eps=1e-8, eps_root=0.0):
    """Tieleman and Hinton, 2012, lecture 6.5."""
    if t == 1:
        s = initial_square_avg
    s = alpha * s + (1 - alpha) * g**2
    return lr * g / (np.sqrt(s + eps_root) + eps), s


@oracle(s="square_avg", b="momentum_buffer")
def rmsprop_momentum(
    t, g, s, b, *, lr=1e-2, alpha=0.99, initial_square_avg=0.0, eps=1e-8, eps_root=0.0, momentum=0.9, lr_inside=False
):
    """RMSprop's direction, accumulated (torch); or with `lr_inside` its step (Keras, optax, TensorFlow)."""
    if t == 1:
        s = initial_square_avg
    s = alpha * s + (1 - alpha) * g**2
    direction = g / (np.sqrt(s + eps_root) + eps)
    b = momentum * b + (lr * direction if lr_inside else direction)
    return (b if lr_inside else lr * b), s, b


@oracle(s="square_avg", a="grad_avg")
def rmsprop_centered(t, g, s, a, *, lr=1e-2, alpha=0.99, initial_square_avg=0.0, eps=1e-8, eps_root=0.0):
    """Graves, 2013 (arXiv:1308.0850): the variance in place of the second moment."""
    if t == 1:
        s = initial_square_avg
    s = alpha * s + (1 - alpha) * g**2
    a = alpha * a + (1 - alpha) * g
    # Never negative but for rounding.
    variance = np.maximum(s - a**2, 0)
    return lr * g / (np.sqrt(variance + eps_root) + eps), s, a


@oracle(s="square_avg", a="grad_avg", b="momentum_buffer")
def rmsprop_centered_momentum(
    t, g, s, a, b, *, lr=1e-2, alpha=0.99, initial_square_avg=0.0, eps=1e-8, eps_root=0.0, momentum=0.9, lr_inside=False
):
    """Graves, 2013 (arXiv:1308.0850), with the direction accumulated."""
    if t == 1:
        s = initial_square_avg
    s = alpha * s + (1 - alpha) * g**2
    a = alpha * a + (1 - alpha) * g
    variance = np.maximum(s - a**2, 0)
    direction = g / (np.sqrt(variance + eps_root) + eps)
    b = momentum * b + (lr * direction if lr_inside else direction)
    return (b if lr_inside else lr * b), s, a, b


@oracle(n="accumulator", z="linear")
def ftrl(t, g, n, z, *, lr=1e-3, initial_accumulator_value=0.0, beta=1.0, l1=0.0, l2=0.0, p=None):
    """McMahan et al., 2013, algorithm 1, per coordinate."""
    if t == 1:
        n = initial_accumulator_value
    if lr == 0:  # no step: sigma and the curvature would be infinite
        return np.zeros_like(p), n + np.zeros_like(p), z
    # The paper's difference of roots, in the form that loses no digits.
    roots = np.sqrt(n + g**2) + np.sqrt(n)
    sigma = g**2 / np.where(roots == 0, 1, roots) / lr
    z = z + g - np.where(sigma == 0, 0, sigma * p)
    n = n + g**2
    w = np.where(np.abs(z) <= l1, 0, -1 / ((beta + np.sqrt(n)) / lr + l2) * (z - np.sign(z) * l1))
    return p - w, n, z


# --- Adam and its family ---


@oracle(m="exp_avg", v="exp_avg_sq")
def adam(t, g, m, v, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, eps_root=0.0, bias_correction=True, eps_hat=False):
    """Kingma and Ba, 2015 (arXiv:1412.6980); with `eps_hat`, eps is beside the root of the uncorrected v."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat = m / (1 - beta1**t) if bias_correction else m
    v_hat = v / (1 - beta2**t) if bias_correction else v
    if eps_hat and bias_correction:
        eps = eps / np.sqrt(1 - beta2**t)
    return lr * m_hat / (np.sqrt(v_hat + eps_root) + eps), m, v


def decoupled(run, default=1e-2):
    """The rule with its decay apart from the gradient: Loshchilov and Hutter, 2019 (arXiv:1711.05101)."""

    def run_decoupled(p0, grads, *, weight_decay=default, **options):
        return run(p0, grads, decoupled_weight_decay=weight_decay, **options)

    return run_decoupled


ORACLES["adamw"] = decoupled(adam)
ORACLES["lion"] = decoupled(lion, 0.0)


@oracle(m="exp_avg", v="exp_avg_sq", x="max_exp_avg_sq")
def amsgrad(
    t,
    g,
    m,
    v,
    x,
    *,
    lr=1e-3,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    eps_root=0.0,
    bias_correction=True,
    eps_hat=False,
    max_corrected=False,
):
    """Reddi, Kale and Kumar, 2018, who correct no bias.

    torch takes the maximum first and corrects it then; with `max_corrected` (optax) it is the other way round.
    """
    correction1 = 1 - beta1**t if bias_correction else 1
    correction2 = 1 - beta2**t if bias_correction else 1
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    if max_corrected:
        x = v_hat = np.maximum(x, v / correction2)
    else:
        x = np.maximum(x, v)
        v_hat = x / correction2
    if eps_hat:
        eps = eps / np.sqrt(correction2)
    return lr * (m / correction1) / (np.sqrt(v_hat + eps_root) + eps), m, v, x


ORACLES["adamw_amsgrad"] = decoupled(amsgrad)


@oracle(m="exp_avg", u="exp_inf")
def adamax(t, g, m, u, *, lr=2e-3, beta1=0.9, beta2=0.999, eps=1e-8, eps_outside=False):
    """Kingma and Ba, 2015 (arXiv:1412.6980), with torch's eps in the norm or Keras's beside it; the paper has none."""
    m = beta1 * m + (1 - beta1) * g
    u = np.maximum(beta2 * u, np.abs(g) if eps_outside else np.abs(g) + eps)
    norm = u + eps if eps_outside else u
    # Without eps, an element that has only seen zero gradients has no direction: it stays where it is.
    direction = np.where(norm == 0, 0, m / norm)
    return lr / (1 - beta1**t) * direction, m, u


@oracle(m="exp_avg", v="exp_avg_sq")
def nadam(t, g, m, v, mu_product, *, lr=2e-3, beta1=0.9, beta2=0.999, eps=1e-8, momentum_decay=4e-3):
    """Dozat, 2016, with torch's warm-up of the momentum; or with `momentum_decay=None` as Ruder has it, at beta1."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    v_hat = v / (1 - beta2**t)
    if momentum_decay is None:
        m_hat = m / (1 - beta1**t)
        m_bar = beta1 * m_hat + (1 - beta1) * g / (1 - beta1**t)
    else:
        mu = beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
        mu_next = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
        mu_product = mu if t == 1 else mu_product * mu
        m_bar = mu_next * m / (1 - mu_product * mu_next) + (1 - mu) * g / (1 - mu_product)
    return lr * m_bar / (np.sqrt(v_hat) + eps), m, v, mu_product


@oracle(m="exp_avg", v="exp_avg_sq")
def qhadam(
    t, g, m, v, *, lr=1e-3, beta1=0.9, beta2=0.999, nu1=1.0, nu2=1.0, eps=1e-8, eps_root=0.0, bias_correction=True
):
    """Ma and Yarats, 2019 (arXiv:1810.06801)."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat = m / (1 - beta1**t) if bias_correction else m
    v_hat = v / (1 - beta2**t) if bias_correction else v
    numerator = (1 - nu1) * g + nu1 * m_hat
    denominator = np.sqrt((1 - nu2) * g**2 + nu2 * v_hat + eps_root) + eps
    return lr * numerator / denominator, m, v


@oracle(m="exp_avg", v="exp_avg_sq")
def adabound(
    t, g, m, v, first_lr, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, final_lr=0.1, gamma=1e-3, base_lr=None
):
    """Luo et al., 2019 (arXiv:1902.09843), as in the authors' code: eps beside the uncorrected root."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    first_lr = lr if t == 1 else first_lr
    lower, upper = dynamic_bounds(t, final_lr * lr / (first_lr if base_lr is None else base_lr), gamma)
    rate = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t) / (np.sqrt(v) + eps)
    return np.clip(rate, lower, upper) * m, m, v, first_lr


@oracle(m="exp_avg", v="exp_avg_sq", x="max_exp_avg_sq")
def amsbound(
    t, g, m, v, x, first_lr, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, final_lr=0.1, gamma=1e-3, base_lr=None
):
    """AdaBound on AMSGrad's maximum."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    x = np.maximum(x, v)
    first_lr = lr if t == 1 else first_lr
    lower, upper = dynamic_bounds(t, final_lr * lr / (first_lr if base_lr is None else base_lr), gamma)
    rate = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t) / (np.sqrt(x) + eps)
    return np.clip(rate, lower, upper) * m, m, v, x, first_lr


@oracle(m="exp_avg", s="exp_avg_var")
def adabelief(t, g, m, s, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-16, eps_root=1e-16):
    """Zhuang et al., 2020 (arXiv:2010.07468), algorithm 2, where both epsilons are one."""
    m = beta1 * m + (1 - beta1) * g
    s = beta2 * s + (1 - beta2) * (g - m) ** 2 + eps_root
    return lr * (m / (1 - beta1**t)) / (np.sqrt(s / (1 - beta2**t)) + eps), m, s


@oracle(m="exp_avg", v="exp_avg_sq")
def radam(t, g, m, v, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, eps_hat=True):
    """Liu et al., 2020 (arXiv:1908.03265), algorithm 2; from rho > 5 on, as in their code, with eps beside sqrt(v)."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat = m / (1 - beta1**t)
    beta = float(beta2)  # rho is a small difference of large numbers: in float64, as in their code and torch's
    rho_inf = 2 / (1 - beta) - 1
    rho = rho_inf - 2 * t * beta**t / (1 - beta**t)
    if rho <= 5:
        return lr * m_hat, m, v
    r = np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    if eps_hat:
        eps = eps / np.sqrt(1 - beta2**t)
    return lr * r * m_hat / (np.sqrt(v / (1 - beta2**t)) + eps), m, v


@oracle(m="exp_avg", v="exp_avg_diff", n="exp_avg_sq", before="neg_pre_grad")
def adan(
    t,
    g,
    m,
    v,
    n,
    before,
    *,
    lr=1e-3,
    beta1=0.98,
    beta2=0.92,
    beta3=0.99,
    eps=1e-8,
    eps_root=0.0,
    difference_weight=None,
    proximal_weight_decay=0.0,
    p=None,
):
    """Xie et al., 2022 (arXiv:2208.06677), algorithm 1, whose betas are 1 less these."""
    weight = beta2 if difference_weight is None else difference_weight
    change = np.zeros_like(g) if t == 1 else g + before
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * change
    n = beta3 * n + (1 - beta3) * (g + weight * change) ** 2
    root = np.sqrt(n / (1 - beta3**t) + eps_root) + eps
    after = p - lr * (m / (1 - beta1**t) + weight * v / (1 - beta2**t)) / root
    return _way(p, after / (1 + lr * proximal_weight_decay)), m, v, n, -g


@oracle(m="exp_avg", s="exp_avg_slow", v="exp_avg_sq")
def ademamix(
    t, g, m, s, v, *, lr=1e-3, beta1=0.9, beta2=0.999, beta3=0.9999, alpha=5.0, warmup=None, eps=1e-8, eps_root=0.0
):
    """Pagliardini et al., 2024 (arXiv:2409.03137), equations of section 3, with their schedules of alpha and beta3."""
    if warmup is not None and t < warmup:
        done = t / warmup
        half_lives = [np.log(0.5) / np.log(beta) - 1 for beta in (beta1, beta3)]
        beta3 = 0.5 ** (1 / ((1 - done) * half_lives[0] + done * half_lives[1] + 1))
        alpha = done * alpha
    m = beta1 * m + (1 - beta1) * g
    s = beta3 * s + (1 - beta3) * g
    v = beta2 * v + (1 - beta2) * g**2
    return lr * (m / (1 - beta1**t) + alpha * s) / (np.sqrt(v / (1 - beta2**t) + eps_root) + eps), m, s, v


def _length(x):
    """The Euclidean norm of all elements together."""
    return np.sqrt(np.sum(x**2))


@oracle(b="momentum_buffer")
def lars(
    t,
    g,
    b,
    *,
    lr=1.0,
    momentum=0.9,
    trust_coefficient=1e-3,
    eps=0.0,
    lr_inside=False,
    decay_inside=False,
    weight_decay=0.0,
    p=None,
):
    """You et al., 2017 (arXiv:1708.03888), algorithm 1, where lr is inside; p is all of a layer."""
    ratio, norms = 1, (_length(p), _length(g + weight_decay * p if decay_inside else g))
    if min(norms) > 0:
        ratio = trust_coefficient * norms[0] / (norms[1] + (0 if decay_inside else weight_decay) * norms[0] + eps)
    b = momentum * b + (lr if lr_inside else 1) * ratio * (g + weight_decay * p)
    return (1 if lr_inside else lr) * b, b


@oracle(m="exp_avg", v="exp_avg_sq")
def lamb(t, g, m, v, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6, eps_root=0.0, weight_decay=0.0, p=None):
    """You et al., 2020 (arXiv:1904.00962), algorithm 2, with phi the identity; p is all of a layer."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    step = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t) + eps_root) + eps) + weight_decay * p
    norms = _length(p), _length(step)
    return lr * (norms[0] / norms[1] if min(norms) > 0 else 1) * step, m, v


@oracle(m="exp_avg", v="exp_avg_sq")
def novograd(
    t,
    g,
    m,
    v,
    *,
    lr=1e-3,
    beta1=0.95,
    beta2=0.98,
    eps=1e-8,
    eps_root=0.0,
    grad_averaging=False,
    weight_decay=0.0,
    p=None,
):
    """Ginsburg et al., 2019 (arXiv:1905.11286), algorithm 1, for one layer; v is a number."""
    square = np.sum(g**2)
    v = square if t == 1 else beta2 * v + (1 - beta2) * square
    step = g / (np.sqrt(v + eps_root) + eps)
    if weight_decay:
        step = step + weight_decay * p
    m = beta1 * m + (1 - beta1 if grad_averaging else 1) * step
    return lr * m, m, v


@oracle(m="exp_avg", v="exp_avg_sq", average="exp_avg2", phase="phase", rate="rate")
def swats(t, g, m, v, average, phase, rate, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-9):
    """Keskar and Socher, 2017 (arXiv:1712.07628), algorithm 1, for what shares a rate, which is positive.

    m is the velocity in the second phase; the last three are numbers.
    """
    average, phase, rate = (0, 0, 0) if t == 1 else (average, phase, rate)
    if phase == 1:
        m = beta1 * m + g
        return (1 - beta1) * rate * m, m, v, average, phase, rate
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    step = -lr * np.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (np.sqrt(v) + eps)
    if np.sum(step * g) != 0:
        projected = np.sum(step * step) / -np.sum(step * g)
        average = beta2 * average + (1 - beta2) * projected
        settled = average / (1 - beta2**t)
        if t > 1 and settled > 0 and abs(settled - projected) < eps:
            phase, rate, m = 1, settled, np.zeros_like(m)
    return -step, m, v, *map(g.dtype.type, (average, phase, rate))


@oracle(s="grad_sum", z="z", largest="z_max", r="snapshot")
def adaptive_revision(t, g, s, z, largest, r, *, lr=1e-2, initial_accumulator_value=1.0, read=True):
    """McMahan and Streeter, 2014: what was applied since the worker read, b, has the new rate for the old."""
    if t == 1:
        z = largest = np.full_like(g, initial_accumulator_value)
    b = s - r
    z = z + g**2 + 2 * g * b
    before, largest = largest, np.maximum(largest, z)
    s = s + g
    return lr / np.sqrt(largest) * (g + b) - lr / np.sqrt(before) * b, s, z, largest, s if read else r


@oracle(w_bak="backup")
def dc_asgd(t, g, w_bak, *, lr=1e-3, lambd=0.04, read=True, p=None, p0=None):
    """Zheng et al., 2017 (arXiv:1609.08326), algorithm 2 and equation 10: lambda times g*g is for the Hessian."""
    if t == 1:
        w_bak = p0
    moved = lr * (g + lambd * g**2 * _way(p, w_bak))
    return moved, p - moved if read else w_bak


@oracle(s="square_avg", w_bak="backup")
def dc_asgd_adaptive(t, g, s, w_bak, *, lr=1e-3, lambd0=2.0, alpha=0.95, eps_root=1e-7, read=True, p=None, p0=None):
    """Zheng et al., 2017, equation 14: lambda over the root of a moving average of squares."""
    s = alpha * s + (1 - alpha) * g**2
    if t == 1:
        w_bak = p0
    moved = lr * (g + lambd0 / np.sqrt(s + eps_root) * g**2 * _way(p, w_bak))
    return moved, s, p - moved if read else w_bak


ORACLES["swats_over_all"] = ORACLES["swats"]


@oracle(m="exp_avg", v="exp_avg_sq", s="s", p0="p0", d="d", d_max="d_max", r="d_numerator")
def prodigy(
    t,
    g,
    m,
    v,
    s,
    p0,
    d,
    d_max,
    r,
    *,
    lr=1.0,
    beta1=0.9,
    beta2=0.999,
    beta3=None,
    eps=1e-8,
    decouple=True,
    use_bias_correction=False,
    safeguard_warmup=False,
    d0=1e-6,
    d_coef=1.0,
    growth_rate=None,
    weight_decay=0.0,
    p=None,
):
    """Mishchenko and Defazio, 2023 (arXiv:2306.06101), algorithm 4, with their package's options; p is all there is."""
    if t == 1:
        p0, d, d_max, r = p, d0, d0, 0
    beta3 = np.sqrt(beta2) if beta3 is None else beta3
    corrected = np.sqrt(1 - beta2**t) / (1 - beta1**t) if use_bias_correction else 1
    rate = d * lr * corrected
    if weight_decay and not decouple:
        g = g + weight_decay * p
    m = beta1 * m + (1 - beta1) * d * g
    v = beta2 * v + (1 - beta2) * (d * g) ** 2
    s = beta3 * s + d / d0 * (d if safeguard_warmup else rate) * g
    numbers = d, d_max, r
    if np.sum(np.abs(s)) == 0:
        return np.zeros_like(g), m, v, s, p0, *map(g.dtype.type, numbers)
    r = beta3 * r + d / d0 * rate * np.sum(g * (p0 - p))
    estimate = d_coef * r / np.sum(np.abs(s))
    d_max = max(d_max, estimate)
    if d == d0:
        d = max(d, estimate)
    d = d_max if growth_rate is None else min(d_max, d * growth_rate)
    step = m / (np.sqrt(v) + d * eps)
    if weight_decay and decouple:
        step = step + weight_decay * p
    return rate * step, m, v, s, p0, *map(g.dtype.type, (d, d_max, r))


def dynamic_bounds(t, final_lr, gamma):
    """AdaBound's interval of learning rates, which closes on `final_lr`."""
    return final_lr * (1 - 1 / (gamma * t + 1)), final_lr * (1 + 1 / (gamma * t))


@oracle(d="z_offset", v="exp_avg_sq")
def schedule_free_adamw(
    t,
    g,
    d,
    v,
    weights,
    largest,
    *,
    lr=0.0025,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    warmup_steps=0,
    weight_step_power=0,
    weight_lr_power=2.0,
    decay=0.0,
    p=None,
):
    """Defazio et al., 2024, section 4: AdamW's direction, with the decay at y, without its average of gradients."""
    v = beta2 * v + (1 - beta2) * g**2
    direction = g / (np.sqrt(v / (1 - beta2**t)) + eps)
    if decay:
        direction = direction + decay * p
    powers = weight_step_power, weight_lr_power
    update, d, *sums = _schedule_free(t, direction, d, weights, largest, lr, beta1, warmup_steps, *powers)
    return update, d, v, *sums


def _inside(run):
    """The rule whose weight decay is the update's."""

    def run_inside(p0, grads, *, weight_decay=0.0, **options):
        return run(p0, grads, decay=weight_decay, **options)

    return run_inside


ORACLES["schedule_free_adamw"] = _inside(schedule_free_adamw)
ORACLES["adan"] = decoupled(adan, 0.0)
ORACLES["ademamix"] = decoupled(ademamix, 0.0)
