"""The claims of an overview of gradient descent (Ruder 2016, arXiv:1609.04747), each run with fastopt's kernels.

Each function runs one claim, and returns it with the figures. Where a claim holds in part, or does not, it says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .. import functional
from ..checks import check_integer, check_number
from ..jobs.noise import GradientNoise
from ..optimizers import CLASSES
from ..schedules import InverseTime
from .descent import Track, descend, tracks, tuned
from .objectives import BEALE, RAVINE, SADDLE, Floats, check_function, check_point
from .scenes import left_saddle, linear_regression, nag


@dataclass(frozen=True)
class Claim:
    """A claim, and what our run says of it.

    Parameters
    ----------
    says : str
        The claim.
    holds : str
        "yes", "in part" or "no".
    figures : str
        The figures of our run.
    """

    says: str
    holds: str
    figures: str


def _verdict(*parts: bool) -> str:
    return "yes" if all(parts) else "in part" if any(parts) else "no"


def _steps(track: Track) -> str:
    count = track.arrival()
    return f"more than {len(track.points) - 1}" if count is None else str(count)


def momentum_damps_the_ravine() -> Claim:
    """Momentum against SGD in a ravine, at two learning rates.

    Near the largest learning rate that SGD bears, momentum swings less and arrives sooner. At half of it SGD does not
    swing at all, and momentum does.

    Examples
    --------
    >>> momentum_damps_the_ravine().holds
    'in part'
    """
    figures, damped = [], []
    for lr in (0.0395, 0.02):
        sgd, momentum = (tracks(rule, RAVINE, [lr], 400)[0] for rule in ("sgd", "momentum"))
        swings = [float(abs(track.points[60:, 1]).max()) for track in (sgd, momentum)]
        damped.append(swings[1] < swings[0])
        figures.append(
            f"lr {lr}: without momentum and with it, swings after 60 steps {swings[0]:.2g} and {swings[1]:.2g}, "
            f"steps to within 1e-3 {_steps(sgd)} and {_steps(momentum)}"
        )
    return Claim("Momentum damps the swings across a ravine", _verdict(*damped), ". ".join(figures))


def nag_corrects_sooner() -> Claim:
    """NAG against Momentum: how far they swing beyond the valley's floor, and when they arrive in the ravine.

    Examples
    --------
    >>> nag_corrects_sooner().holds
    'yes'
    """
    momentum, nesterov = nag().tracks
    beyond = [-float(track.points[:, 1].min()) for track in (momentum, nesterov)]
    arrivals = [tuned(rule, RAVINE, 400).arrival() or 401 for rule in ("momentum", "nesterov")]
    return Claim(
        "NAG corrects sooner than Momentum",
        _verdict(beyond[1] < beyond[0], arrivals[1] < arrivals[0]),
        f"swings {beyond[0]:.2f} beyond the floor with Momentum, {beyond[1]:.2f} with NAG; in the ravine, each with "
        f"its best lr, arrives after {arrivals[0]} and {arrivals[1]} steps",
    )


def adagrad_rate_only_falls() -> Claim:
    """The learning rate of each element under Adagrad, ``lr/(sqrt(sum) + eps)``, on Beale's function.

    Examples
    --------
    >>> adagrad_rate_only_falls().holds
    'yes'
    """
    lr, param = 0.5, np.array(BEALE.start)
    opt = CLASSES["Adagrad"](param, lr=lr)
    rates = []
    for _ in range(600):
        opt.step(BEALE.gradient(param))
        rates.append(lr / (np.sqrt(opt.state[0]["sum"]) + 1e-10))
    falls = bool(np.all(np.diff(rates, axis=0) <= 0))
    return Claim(
        "Adagrad's learning rate only falls",
        _verdict(falls),
        f"over 600 steps no element's rate rises; x: {rates[0][0]:.3g} to {rates[-1][0]:.3g}, "
        f"y: {rates[0][1]:.3g} to {rates[-1][1]:.3g}",
    )


def adaptive_rules_leave_the_saddle_first() -> Claim:
    """Steps from 1e-6 beside the ridge of a saddle point until the loss is below -1, with two learning rates.

    Adadelta has lr 1 in both. With a small learning rate Adagrad, whose steps shrink, comes last of all.

    Examples
    --------
    >>> adaptive_rules_leave_the_saddle_first().holds
    'in part'
    """
    figures, holds = [], []
    for lr in (0.1, 0.01):
        left = {}
        for rule in ("adagrad", "adadelta", "rmsprop", "sgd", "momentum", "nesterov"):
            (track,) = tracks(rule, SADDLE, [1.0 if rule == "adadelta" else lr], 3000)
            left[rule] = left_saddle(track) or 3001
        late = min(left[rule] for rule in ("sgd", "momentum", "nesterov"))
        holds += [left[rule] < late for rule in ("adagrad", "adadelta", "rmsprop")]
        figures.append(f"lr {lr}: " + ", ".join(f"{rule} {count}" for rule, count in left.items()))
    return Claim(
        "Adagrad, Adadelta and RMSprop leave a saddle point soon, SGD, Momentum and NAG late",
        _verdict(*holds),
        "steps: " + ". ".join(figures),
    )


def annealed_sgd_converges() -> Claim:
    """SGD by one example at a time, 16 runs: the loss above its minimum with a constant rate and with a falling one.

    Examples
    --------
    >>> annealed_sgd_converges().holds
    'yes'
    """
    inputs, targets, objective = linear_regression()
    found = []
    for lr in (0.2, InverseTime(0.2, tau=20)):
        rng = np.random.default_rng(2)

        def gradient(runs: Floats, rng: np.random.Generator = rng) -> Floats:
            p = runs.reshape(16, 2)
            chosen = rng.integers(len(targets), size=16)
            error = (p * inputs[chosen]).sum(axis=1) - targets[chosen]
            return (error[:, None] * inputs[chosen]).reshape(runs.shape)

        points = descend("sgd", gradient, objective.start * 16, [lr], 4000).reshape(-1, 16, 2)
        losses = objective.loss(points).mean(axis=1)
        found.append([float(losses[t // 2 : t].mean()) for t in (400, 4000)])
    constant, annealed = found
    return Claim(
        "SGD with an annealed rate converges where a constant one fluctuates",
        _verdict(annealed[1] < 0.2 * annealed[0], constant[1] > 0.5 * constant[0]),
        f"loss above the minimum after 400 and 4000 steps: constant {constant[0]:.2g} and {constant[1]:.2g}, annealed "
        f"as 1/t {annealed[0]:.2g} and {annealed[1]:.2g}",
    )


def adam_corrects_its_bias() -> Claim:
    """Adam's steps under a constant gradient, with and without bias correction: corrected, each is lr.

    Examples
    --------
    >>> adam_corrects_its_bias().holds
    'yes'
    """
    points = {
        corrected: descend("adam", np.ones_like, (0.0,), [1e-3], 1000, bias_correction=corrected)[:, 0, 0]
        for corrected in (True, False)
    }
    sizes = {corrected: -np.diff(path) / 1e-3 for corrected, path in points.items()}
    shown = ", ".join(f"{sizes[False][t - 1]:.2f}" for t in (1, 10, 100))
    return Claim(
        "Adam's bias correction makes up for averages that begin at zero",
        _verdict(bool(np.allclose(sizes[True], 1.0, rtol=1e-6)), sizes[False].max() > 2),
        f"under a constant gradient each step is {sizes[True][0]:.2f} lr; without correction steps 1, 10 and 100 are "
        f"{shown} lr",
    )


def amsgrad_survives_reddis_counterexample() -> Claim:
    """Reddi, Kale and Kumar 2018, theorem 1: the gradient is 3 at each third step, else -1; x stays in [-1, 1].

    The average gradient is 1/3, so that -1 is best. With beta1 = 0, beta2 = 1/10 and lr 0.5/sqrt(t) Adam goes to 1.

    Examples
    --------
    >>> amsgrad_survives_reddis_counterexample().holds
    'yes'
    """
    ends = {}
    for rule in ("adam", "amsgrad"):
        param, states = np.zeros(1), [np.zeros(1) for _ in range(3 if rule == "amsgrad" else 2)]
        for t in range(1, 3001):
            grad = np.array([3.0 if t % 3 == 1 else -1.0])
            getattr(functional, rule)(
                param, grad, *states, step=t, lr=0.5 / t**0.5, beta1=0.0, beta2=0.1, bias_correction=False
            )
            np.clip(param, -1, 1, out=param)
        ends[rule] = float(param[0])
    return Claim(
        "On Reddi's counterexample Adam goes to the wrong end, AMSGrad to the right one",
        _verdict(ends["adam"] > 0.9, ends["amsgrad"] < -0.9),
        f"after 3000 steps Adam is at {ends['adam']:.2f}, AMSGrad at {ends['amsgrad']:.2f}; the best is -1",
    )


def adabound_begins_as_adam_and_ends_as_sgd() -> Claim:
    """AdaBound's steps for two elements, whose gradients are 1 and 0.01: Adam's are as large, SGD's as 100 to 1.

    Examples
    --------
    >>> adabound_begins_as_adam_and_ends_as_sgd().holds
    'yes'
    """
    points = descend("adabound", lambda p: np.broadcast_to([1.0, 0.01], p.shape), (0.0, 0.0), [1e-3], 30_000)[:, 0]
    ratios = [float(np.divide(*(points[t] - points[t - 1]))) for t in (1, 1000, 30_000)]
    return Claim(
        "AdaBound begins as Adam and ends as SGD",
        _verdict(abs(ratios[0] - 1) < 1e-3, abs(ratios[-1] - 100) < 10),
        "steps for gradients of 1 and 0.01 are as " + ", ".join(f"{ratio:.3g}" for ratio in ratios)
        + " to 1 at step 1, 1000 and 30000 (Adam's: 1, SGD's: 100)",
    )  # fmt: skip


def swats(
    gradient: Callable[[Floats], Floats], start: Floats, lr: float, steps: int, tolerance: float = 1e-9
) -> tuple[Floats, int | None, float]:
    """Adam, then SGD (Keskar and Socher 2017, arXiv:1712.07628): the points, the step of the switch, SGD's rate.

    At each step Adam's move d is projected on the gradient, ``gamma = d.d/(-d.g)``, and averaged. Once the average,
    with its bias corrected, is within a tolerance of gamma, SGD with momentum 0.9 goes on at that rate, times 0.1 for
    the velocity is a sum.

    Parameters
    ----------
    gradient : callable
        The gradient at a point.
    start : numpy.ndarray
        The first point.
    lr : float
        Adam's learning rate.
    steps : int
        How many.
    tolerance : float
        The paper's epsilon.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be.

    Examples
    --------
    >>> points, switch, rate = swats(lambda p: np.ones(2), np.zeros(2), 0.01, 5)
    >>> switch, round(rate, 4)
    (2, 0.01)
    """
    check_function("gradient", gradient)
    check_integer("steps", steps, 1)
    check_number("tolerance", tolerance, 0.0, above=True)
    param = check_point("start", start).copy()
    average, switch, rate, points = 0.0, None, 0.0, [param.copy()]
    adam = CLASSES["Adam"](param, lr=lr)
    for t in range(1, steps + 1):
        grad = gradient(param)
        adam.step(grad)
        move = param - points[-1]
        points.append(param.copy())
        along = float(-move @ grad)
        if along == 0:
            continue
        gamma = float(move @ move) / along
        average = 0.999 * average + 0.001 * gamma
        rate = average / (1 - 0.999**t)
        if t > 1 and abs(rate - gamma) < tolerance:
            switch = t
            break
    if switch is not None:
        sgd = CLASSES["Momentum"](param, lr=0.1 * rate, momentum=0.9)
        for _ in range(switch, steps):
            sgd.step(gradient(param))
            points.append(param.copy())
    return np.array(points), switch, rate


def swats_switches() -> Claim:
    """SWATS on a linear regression by ten examples at a time, with the paper's tolerance and with a wider one.

    Examples
    --------
    >>> swats_switches().holds
    'in part'
    """
    inputs, targets, objective = linear_regression()
    figures, switched = [], []
    for tolerance in (1e-9, 1e-5):
        rng = np.random.default_rng(3)

        def gradient(p: Floats, rng: np.random.Generator = rng) -> Floats:
            batch = rng.integers(len(targets), size=10)
            return inputs[batch].T @ (inputs[batch] @ p - targets[batch]) / 10

        points, switch, rate = swats(gradient, np.array(objective.start), 0.01, 3000, tolerance)
        switched.append(switch is not None)
        after = "" if switch is None else f", to SGD with rate {rate:.2g}, loss {objective.loss(points[-1]):.1g}"
        when = "does not" if switch is None else f"at step {switch}"
        figures.append(f"tolerance {tolerance:g}: {when}{after}")
    return Claim("SWATS switches from Adam to SGD", _verdict(*switched), "within 3000 steps, " + "; ".join(figures))


def _deep_network(spread: float, eta: float, steps: int = 1500) -> float:
    """The accuracy of five hidden layers of eight tanh units on a disc of 256 points, after SGD with gradient noise.

    Parameters
    ----------
    spread : float
        The standard deviation of the weights at the start.
    eta : float
        The noise's variance is ``eta/(1 + t)^0.55``, with t from 0.
    steps : int
        How many.
    """
    rng = np.random.default_rng(0)
    inputs = rng.uniform(-1.5, 1.5, (256, 2))
    labels = np.where(np.hypot(inputs[:, 0], inputs[:, 1]) < 0.85, 1.0, -1.0)
    sizes = (2, 8, 8, 8, 8, 8, 1)
    count = len(sizes) - 1
    weights = [spread * rng.standard_normal(shape) for shape in pairwise(sizes)]
    params = [*weights, *(np.zeros(size) for size in sizes[1:])]
    grads = [np.zeros_like(param) for param in params]
    noise = GradientNoise(eta) if eta else None
    plan = CLASSES["SGD"](params, lr=0.3, gradient_noise=noise).bind(grads)
    for t in range(steps + 1):
        layers = [inputs]
        for k in range(count):
            sums = layers[-1] @ params[k] + params[count + k]
            layers.append(np.tanh(sums) if k < count - 1 else sums)
        output = layers[-1][:, 0]
        if t == steps:
            break
        delta = (-labels / (1 + np.exp(labels * output)) / len(labels))[:, None]
        for k in reversed(range(count)):
            np.matmul(layers[k].T, delta, out=grads[k])
            delta.sum(axis=0, out=grads[count + k])
            delta = (delta @ params[k].T) * (1 - layers[k] ** 2)
        plan.step()
    return float(((output > 0) == (labels > 0)).mean())


def noise_helps_a_deep_network() -> Claim:
    """Gradient noise (Neelakantan et al. 2015, arXiv:1511.06807) in a deep network that begins badly.

    Examples
    --------
    >>> noise_helps_a_deep_network().holds
    'yes'
    """
    figures, better = [], []
    for name, spread in (("zero", 0.0), ("0.1 times normal numbers", 0.1)):
        without, with_noise = _deep_network(spread, 0.0), _deep_network(spread, 0.1)
        better.append(with_noise > without + 0.1)
        figures.append(f"from weights of {name} {without:.0%} without noise, {with_noise:.0%} with it")
    return Claim(
        "Noise helps a deep network from a bad start", _verdict(*better), "accuracy after SGD " + "; ".join(figures)
    )


#: Every claim, in the order of the overview.
CLAIMS: tuple[Callable[[], Claim], ...] = (
    momentum_damps_the_ravine,
    nag_corrects_sooner,
    adagrad_rate_only_falls,
    adaptive_rules_leave_the_saddle_first,
    annealed_sgd_converges,
    adam_corrects_its_bias,
    amsgrad_survives_reddis_counterexample,
    adabound_begins_as_adam_and_ends_as_sgd,
    swats_switches,
    noise_helps_a_deep_network,
)


def claims_table() -> str:
    """All claims, run, as a table; it takes some seconds.

    Examples
    --------
    >>> print(claims_table())  # doctest: +SKIP
    """
    lines = ["| claim | holds | figures |", "|---|---|---|"]
    lines += [f"| {claim.says} | {claim.holds} | {claim.figures} |" for claim in (run() for run in CLAIMS)]
    return "\n".join(lines)
