"""The rules as functions: one call, one step, in place, no objects.

Every rule of `fastopt.RULES` has its function here, made from the table, and so have rules of whole matrices, such as::

    adam(param, grad, exp_avg, exp_avg_sq, *, step, lr=1e-3, beta1=0.9, ...)

``param`` and the others are arrays, or equally long lists of arrays: one call updates them all. All functions take:

param, grad, states : array, or list of arrays
    Of one shape; all but ``grad`` are written. Each is float32, bfloat16 or float16, in any combination, and the update
    is computed in float32; or all are float64. A state may be in blocks of 8-bit floats: bytes as `fastopt.Adam` with
    ``state_dtype="8bit"`` keeps them. ``grad`` may be a `fastopt.RowSparse`.
step : int
    The 1-based number of this step.
hyper-parameters : float or bool
    By keyword. There are no schedules: each call has its own values.
weight_decay : float, default 0.0
    L2 penalty: added to the gradient, times the parameter. A finite number >= 0.
decoupled_weight_decay : float, default 0.0
    Decay of the parameter itself, times lr, before the update. A finite number >= 0.
maximize : bool, default False
    Ascend instead of descend: the gradient's sign is flipped.
grad_scale : float, default 1.0
    A factor of the gradient, within the pass.
gradient_noise : fastopt.GradientNoise, optional
    Normal noise that is added to the gradient, within the pass.
first_element : int, default 0
    The number of the first parameter's first element, of which noise depends; the others' follow.
backend : str, optional
    "native", "numba" or "numba-cuda"; by default what `fastopt.use_backend` chose, else by the arrays.
threads : int, optional
    At most so many threads; by default `fastopt.get_num_threads`.

A rule that reads further arrays beside the gradient takes them by keyword, as ``param``.

What is wrong is a ValueError or TypeError before any byte is written; the message names the argument, what was found
and what would do."""

# Written by: python -m fastopt.generate

from collections.abc import Sequence
from typing import Literal, SupportsIndex

from ._types import Array, Gradient, Number, Numbers
from .jobs.noise import GradientNoise

__all__ = ['sgd', 'momentum', 'nesterov', 'qhm', 'aggmo', 'lion', 'signsgd', 'schedule_free_sgd', 'asgd', 'rprop', 'adagrad', 'rowwise_adagrad', 'adadelta', 'rmsprop', 'rmsprop_momentum', 'rmsprop_centered', 'rmsprop_centered_momentum', 'ftrl', 'adam', 'amsgrad', 'adamw', 'adamw_amsgrad', 'adamax', 'nadam', 'qhadam', 'adabound', 'amsbound', 'adabelief', 'radam', 'adan', 'ademamix', 'schedule_free_adamw', 'lars', 'lamb', 'novograd', 'swats', 'swats_over_all', 'prodigy', 'adaptive_revision', 'dc_asgd', 'dc_asgd_adaptive', 'muon', 'adafactor']

def sgd(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of sgd, in place.

    Stochastic gradient descent: a step against the gradient.

    ::

        p -= lr*g

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    Source: Robbins and Monro 1951; torch.optim.SGD.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> fastopt.functional.sgd(p, 2 * p, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.8, -1.6]
    """

def momentum(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    momentum_buffer: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    momentum: Number = 0.9,
    dampening: Number = 0.0,
    lr_inside: bool = False,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of momentum, in place.

    Gradient descent with momentum: a step against a decaying sum of the gradients.

    ::

        b = momentum*b + (1 - dampening)*g, the first step b = g
        p -= lr*b

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    ``lr_inside=True`` is the form of Ruder's overview and of Keras: b = momentum*b + lr*g; p -= b.

    Source: Polyak 1964; torch.optim.SGD(momentum=).

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    momentum_buffer : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    momentum : float, default 0.9
        Decay rate of the velocity. A finite number >= 0.
    dampening : float, default 0.0
        The gradient enters the velocity times 1 - dampening, from the second step on.
    lr_inside : bool, default False
        The velocity accumulates lr*g instead of g (differs once lr changes).
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, momentum_buffer = np.array([1.0, -2.0]), np.zeros(2)
    >>> fastopt.functional.momentum(p, 2 * p, momentum_buffer, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.8, -1.6]
    """

def nesterov(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    momentum_buffer: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    momentum: Number = 0.9,
    dampening: Number = 0.0,
    lr_inside: bool = False,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of nesterov, in place.

    Nesterov's accelerated gradient: momentum, with the gradient at the point ahead.

    ::

        b = momentum*b + (1 - dampening)*g, the first step b = g
        p -= lr*(g + momentum*b)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    The parameter array holds the look-ahead point theta - momentum*v of the literal form v =
    momentum*v + lr*grad(theta - momentum*v); theta -= v, at which the gradient is to be taken.

    Source: Nesterov 1983, in the form of Sutskever et al. 2013; torch.optim.SGD(nesterov=True).

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    momentum_buffer : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    momentum : float, default 0.9
        Decay rate of the velocity. A finite number >= 0.
    dampening : float, default 0.0
        The gradient enters the velocity times 1 - dampening, from the second step on.
    lr_inside : bool, default False
        The velocity accumulates lr*g instead of g (differs once lr changes).
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, momentum_buffer = np.array([1.0, -2.0]), np.zeros(2)
    >>> fastopt.functional.nesterov(p, 2 * p, momentum_buffer, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.62, -1.24]
    """

def qhm(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    momentum_buffer: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number,
    momentum: Number = 0.999,
    nu: Number = 0.7,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of qhm, in place.

    Quasi-hyperbolic momentum: a step against a weighted mean of the gradient and its average.

    ::

        b = momentum*b + (1 - momentum)*g
        p -= lr*(nu*b + (1 - nu)*g)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    Source: Ma and Yarats 2019, arXiv:1810.06801.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    momentum_buffer : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float
        Learning rate. A finite number >= 0.
    momentum : float, default 0.999
        Decay rate of the gradient's average (beta in the paper). A number in [0, 1).
    nu : float, default 0.7
        Weight of the average against the gradient. A number in [0, 1].
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, momentum_buffer = np.array([1.0, -2.0]), np.zeros(2)
    >>> fastopt.functional.qhm(p, 2 * p, momentum_buffer, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.93986, -1.87972]
    """

def aggmo(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    momentum_buffer: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    betas: Numbers = (0.0, 0.9, 0.99),
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of aggmo, in place.

    Aggregated momentum: a step against the mean of several velocities, each with its own decay
    rate.

    ::

        b_k = beta_k*b_k + g for each k
        p -= lr/K * sum of b_k

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    The state has shape (K, *shape of the parameter). Velocities are subtracted one after the other.

    Source: Lucas et al. 2019, arXiv:1804.00325.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    momentum_buffer : array, or list of arrays
        States, which are updated too (of shape (number of betas, ...)). They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    betas : sequence of float, default (0.0, 0.9, 0.99)
        Decay rates of the K velocities. Each a number in [0, 1).
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, momentum_buffer = np.array([1.0, -2.0]), np.zeros((3, 2))
    >>> fastopt.functional.aggmo(p, 2 * p, momentum_buffer, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.8, -1.6]
    """

def lion(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    exp_avg: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.0001,
    beta1: Number = 0.9,
    beta2: Number = 0.99,
    weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of lion, in place.

    Evolved sign momentum: a step of lr against the sign of a weighted mean of the average and the
    gradient.

    ::

        p -= lr*weight_decay*p
        p -= lr*sign(beta1*m + (1 - beta1)*g)
        m = beta2*m + (1 - beta2)*g

    Here g is grad_scale*grad, its sign flipped by ``maximize``.

    Source: Chen et al. 2023, arXiv:2302.06675.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    exp_avg : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.0001
        Learning rate. A finite number >= 0.
    beta1 : float, default 0.9
        Weight of the average against the gradient in a step. A number in [0, 1).
    beta2 : float, default 0.99
        Decay rate of the gradient's average. A number in [0, 1).
    weight_decay : float, default 0.0
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    more : as every function
        ``maximize``, ``grad_scale``, ``gradient_noise``, ``first_element``, ``backend``,
        ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, exp_avg = np.array([1.0, -2.0]), np.zeros(2)
    >>> fastopt.functional.lion(p, 2 * p, exp_avg, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

def signsgd(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    momentum_buffer: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    momentum: Number = 0.9,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of signsgd, in place.

    A step of lr against the sign of the gradient's average (Signum).

    ::

        b = momentum*b + (1 - momentum)*g
        p -= lr*sign(b)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    ``momentum=0`` is signSGD, whose step is against the sign of the gradient itself.

    Source: Bernstein et al. 2018, arXiv:1802.04434.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    momentum_buffer : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    momentum : float, default 0.9
        Decay rate of the gradient's average. A number in [0, 1).
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, momentum_buffer = np.array([1.0, -2.0]), np.zeros(2)
    >>> fastopt.functional.signsgd(p, 2 * p, momentum_buffer, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

def schedule_free_sgd(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    z_offset: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 1.0,
    momentum: Number = 0.9,
    warmup_steps: Number = 0.0,
    weight_step_power: Number = 0.0,
    weight_lr_power: Number = 2.0,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    weight_sum: Number | None = None,
    lr_max: Number | None = None,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of schedule_free_sgd, in place.

    SGD without a schedule: iterates z are averaged to x, and gradients are taken in between.

    ::

        d = z - p
        p -= gamma*(1 - momentum*(1 - c))*g - c*d
        d = (1 - c)*(d - gamma*momentum*g), gamma = lr*min(1, t/warmup_steps), c = w_t/sum of w_{<=t}, w_t = t^weight_step_power*(max gamma_{<=t})^weight_lr_power

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    In the paper's letters p is y = (1 - momentum)*z + momentum*x, and ``z_offset`` z - y. What is
    to be evaluated is x = y - (1 - momentum)/momentum*z_offset. ``weight_sum`` is in units of the
    largest weight that a learning rate gave so far.

    Source: Defazio et al. 2024, arXiv:2405.15682; the authors' package schedulefree.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    z_offset : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 1.0
        Learning rate. A finite number >= 0.
    momentum : float, default 0.9
        Where the gradient is taken: 1 at the average x, 0 at z. A number in [4.94066e-324, 1).
    warmup_steps : float, default 0.0
        Steps over which the learning rate rises from 0. A finite number >= 0.
    weight_step_power : float, default 0.0
        Power of the step's number in its weight (r in the paper). A number in [0, 10].
    weight_lr_power : float, default 2.0
        Power of the largest learning rate so far in a step's weight. A finite number >= 0.
    weight_sum : float, optional
        Its value before this step; by default that of constant hyper-parameters.
    lr_max : float, optional
        Its value before this step; by default that of constant hyper-parameters.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, z_offset = np.array([1.0, -2.0]), np.zeros(2)
    >>> fastopt.functional.schedule_free_sgd(p, 2 * p, z_offset, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.8, -1.6]
    """

def asgd(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    ax: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.01,
    lambd: Number = 0.0001,
    alpha: Number = 0.75,
    t0: Number = 1000000.0,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    eta: Number | None = None,
    mu: Number | None = None,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of asgd, in place.

    Averaged SGD: a step against the gradient at a decaying rate, beside the average of the
    parameters.

    ::

        p = (1 - lambd*eta)*p - eta*g, eta = lr/(1 + lambd*lr*(t - 1))^alpha
        a = a + mu*(p - a), mu = 1/max(1, t - 1 - t0)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    The state ``ax`` is the average; a step's eta comes from the lr of the step before.

    Source: Polyak and Juditsky 1992, at the rates of Bottou 2010; torch.optim.ASGD.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    ax : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.01
        Learning rate. A finite number >= 0.
    lambd : float, default 0.0001
        Decay of the parameter, times eta.
    alpha : float, default 0.75
        Power by which the rate eta decays.
    t0 : float, default 1000000.0
        Steps before the average begins.
    eta : float, optional
        Its value before this step; by default that of constant hyper-parameters.
    mu : float, optional
        Its value before this step; by default that of constant hyper-parameters.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, ax = np.array([1.0, -2.0]), np.zeros(2)
    >>> fastopt.functional.asgd(p, 2 * p, ax, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.79999, -1.59998]
    """

def rprop(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    prev: Array | Sequence[Array],
    step_size: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.01,
    etaminus: Number = 0.5,
    etaplus: Number = 1.2,
    step_size_min: Number = 1e-06,
    step_size_max: Number = 50.0,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of rprop, in place.

    Resilient backpropagation: steps against the gradient's sign, longer while it stays, shorter if
    it turns.

    ::

        s = min(s*etaplus, largest) where g*prev > 0, max(s*etaminus, smallest) where g*prev < 0, and there g = 0
        p -= s*sign(g)
        prev = g

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    Gradients are to be those of all data: with batches their signs turn by chance.

    Source: Riedmiller and Braun 1993; torch.optim.Rprop.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    prev, step_size : array, or list of arrays
        States, which are updated too. They begin at zero, step_size at the class's lr.
    step : int
        The 1-based number of this step.
    lr : float, default 0.01
        Length of the first step. A finite number >= 0.
    etaminus : float, default 0.5
        Factor of the step's length where the sign turns. A number in [4.94066e-324, 1).
    etaplus : float, default 1.2
        Factor where it stays. A finite number >= 1.
    step_size_min : float, default 1e-06
        The shortest step.
    step_size_max : float, default 50.0
        The longest step.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, prev, step_size = np.array([1.0, -2.0]), np.zeros(2), np.full(2, 0.1)
    >>> fastopt.functional.rprop(p, 2 * p, prev, step_size, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

def adagrad(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    sum: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.01,
    lr_decay: Number = 0.0,
    eps: Number = 1e-10,
    eps_root: Number = 0.0,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of adagrad, in place.

    The gradient over the root of the sum of all squared gradients.

    ::

        s += g^2
        p -= lr_t*g/(sqrt(s + eps_root) + eps), lr_t = lr/(1 + (t - 1)*lr_decay)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    Source: Duchi et al. 2011; torch.optim.Adagrad.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    sum : array, or list of arrays
        States, which are updated too. They begin at zero, sum at the class's
        initial_accumulator_value.
    step : int
        The 1-based number of this step.
    lr : float, default 0.01
        Learning rate. A finite number >= 0.
    lr_decay : float, default 0.0
        Decay of the learning rate with the step. A finite number >= 0.
    eps : float, default 1e-10
        Added to the denominator. A finite number >= 0.
    eps_root : float, default 0.0
        Added under the square root. A finite number >= 0.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, sum = np.array([1.0, -2.0]), np.zeros(2)
    >>> fastopt.functional.adagrad(p, 2 * p, sum, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

def rowwise_adagrad(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    sum: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.01,
    lr_decay: Number = 0.0,
    eps: Number = 1e-10,
    eps_root: Number = 0.0,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of rowwise_adagrad, in place.

    Adagrad with one sum of squares for each row, for embedding tables.

    ::

        s += mean of g^2 over the row
        p -= lr_t/(sqrt(s + eps_root) + eps)*g, lr_t = lr/(1 + (t - 1)*lr_decay)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    The state has one element for each row of the parameter (its first axis).

    Source: Duchi et al. 2011, by row as FBGEMM's EXACT_ROWWISE_ADAGRAD.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    sum : array, or list of arrays
        States, which are updated too (an element a row). They begin at zero, sum at the class's
        initial_accumulator_value.
    step : int
        The 1-based number of this step.
    lr : float, default 0.01
        Learning rate. A finite number >= 0.
    lr_decay : float, default 0.0
        Decay of the learning rate with the step. A finite number >= 0.
    eps : float, default 1e-10
        Added to the denominator. A finite number >= 0.
    eps_root : float, default 0.0
        Added under the square root. A finite number >= 0.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, sum = np.array([1.0, -2.0]), np.zeros(2)
    >>> fastopt.functional.rowwise_adagrad(p, 2 * p, sum, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

def adadelta(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    square_avg: Array | Sequence[Array],
    acc_delta: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 1.0,
    rho: Number = 0.9,
    eps: Number = 1e-06,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of adadelta, in place.

    The gradient times the root of the average squared step over that of the average squared
    gradient.

    ::

        s = rho*s + (1 - rho)*g^2
        d = sqrt(u + eps)/sqrt(s + eps)*g
        u = rho*u + (1 - rho)*d^2
        p -= lr*d

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    Source: Zeiler 2012, arXiv:1212.5701; torch.optim.Adadelta.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    square_avg, acc_delta : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 1.0
        Learning rate. A finite number >= 0.
    rho : float, default 0.9
        Decay rate of both averages. A number in [0, 1].
    eps : float, default 1e-06
        Added under both square roots. A finite number >= 0.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, square_avg, acc_delta = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    >>> fastopt.functional.adadelta(p, 2 * p, square_avg, acc_delta, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.999684, -1.999684]
    """

def rmsprop(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    square_avg: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.01,
    alpha: Number = 0.99,
    eps: Number = 1e-08,
    eps_root: Number = 0.0,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of rmsprop, in place.

    The gradient over the root of the average squared gradient.

    ::

        s = alpha*s + (1 - alpha)*g^2
        p -= lr*g/(sqrt(s + eps_root) + eps)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    Source: Tieleman and Hinton 2012, lecture 6.5; torch.optim.RMSprop.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    square_avg : array, or list of arrays
        States, which are updated too. They begin at zero, square_avg at the class's
        initial_square_avg.
    step : int
        The 1-based number of this step.
    lr : float, default 0.01
        Learning rate. A finite number >= 0.
    alpha : float, default 0.99
        Decay rate of the averages. A finite number >= 0.
    eps : float, default 1e-08
        Added to the denominator. A finite number >= 0.
    eps_root : float, default 0.0
        Added under the square root. A finite number >= 0.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, square_avg = np.array([1.0, -2.0]), np.zeros(2)
    >>> fastopt.functional.rmsprop(p, 2 * p, square_avg, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.0, -1.0]
    """

def rmsprop_momentum(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    square_avg: Array | Sequence[Array],
    momentum_buffer: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.01,
    alpha: Number = 0.99,
    eps: Number = 1e-08,
    eps_root: Number = 0.0,
    momentum: Number = 0.9,
    lr_inside: bool = False,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of rmsprop_momentum, in place.

    RMSprop with momentum: a decaying sum of its steps.

    ::

        s = alpha*s + (1 - alpha)*g^2
        b = momentum*b + g/(sqrt(s + eps_root) + eps)
        p -= lr*b

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    ``lr_inside=True`` is the form of Graves, Keras, optax and TensorFlow: b = momentum*b +
    lr*g/(...); p -= b.

    Source: Tieleman and Hinton 2012, lecture 6.5; torch.optim.RMSprop(momentum=).

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    square_avg, momentum_buffer : array, or list of arrays
        States, which are updated too. They begin at zero, square_avg at the class's
        initial_square_avg.
    step : int
        The 1-based number of this step.
    lr : float, default 0.01
        Learning rate. A finite number >= 0.
    alpha : float, default 0.99
        Decay rate of the averages. A finite number >= 0.
    eps : float, default 1e-08
        Added to the denominator. A finite number >= 0.
    eps_root : float, default 0.0
        Added under the square root. A finite number >= 0.
    momentum : float, default 0.9
        Decay rate of the velocity. A finite number >= 0.
    lr_inside : bool, default False
        The velocity accumulates steps, lr and all (differs once lr changes).
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, square_avg, momentum_buffer = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    >>> fastopt.functional.rmsprop_momentum(p, 2 * p, square_avg, momentum_buffer, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.0, -1.0]
    """

def rmsprop_centered(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    square_avg: Array | Sequence[Array],
    grad_avg: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.01,
    alpha: Number = 0.99,
    eps: Number = 1e-08,
    eps_root: Number = 0.0,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of rmsprop_centered, in place.

    RMSprop with the gradient's variance in place of its mean square.

    ::

        as rmsprop, with a = alpha*a + (1 - alpha)*g and max(s - a^2, 0) in place of s

    and rmsprop is::

        s = alpha*s + (1 - alpha)*g^2
        p -= lr*g/(sqrt(s + eps_root) + eps)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    torch does not clamp the variance at 0, and gives NaN where rounding makes it negative.

    Source: Graves 2013, arXiv:1308.0850; torch.optim.RMSprop(centered=True).

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    square_avg, grad_avg : array, or list of arrays
        States, which are updated too. They begin at zero, square_avg at the class's
        initial_square_avg.
    step : int
        The 1-based number of this step.
    lr : float, default 0.01
        Learning rate. A finite number >= 0.
    alpha : float, default 0.99
        Decay rate of the averages. A finite number >= 0.
    eps : float, default 1e-08
        Added to the denominator. A finite number >= 0.
    eps_root : float, default 0.0
        Added under the square root. A finite number >= 0.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, square_avg, grad_avg = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    >>> fastopt.functional.rmsprop_centered(p, 2 * p, square_avg, grad_avg, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [-0.005038, -0.994962]
    """

def rmsprop_centered_momentum(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    square_avg: Array | Sequence[Array],
    momentum_buffer: Array | Sequence[Array],
    grad_avg: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.01,
    alpha: Number = 0.99,
    eps: Number = 1e-08,
    eps_root: Number = 0.0,
    momentum: Number = 0.9,
    lr_inside: bool = False,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of rmsprop_centered_momentum, in place.

    Centered RMSprop with momentum: a decaying sum of its steps.

    ::

        as rmsprop_momentum, with a = alpha*a + (1 - alpha)*g and max(s - a^2, 0) in place of s

    and rmsprop_momentum is::

        s = alpha*s + (1 - alpha)*g^2
        b = momentum*b + g/(sqrt(s + eps_root) + eps)
        p -= lr*b

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    ``lr_inside=True`` is the form of Graves, Keras, optax and TensorFlow: b = momentum*b +
    lr*g/(...); p -= b.

    torch does not clamp the variance at 0, and gives NaN where rounding makes it negative.

    Source: Graves 2013, arXiv:1308.0850; torch.optim.RMSprop(centered=True, momentum=).

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    square_avg, momentum_buffer, grad_avg : array, or list of arrays
        States, which are updated too. They begin at zero, square_avg at the class's
        initial_square_avg.
    step : int
        The 1-based number of this step.
    lr : float, default 0.01
        Learning rate. A finite number >= 0.
    alpha : float, default 0.99
        Decay rate of the averages. A finite number >= 0.
    eps : float, default 1e-08
        Added to the denominator. A finite number >= 0.
    eps_root : float, default 0.0
        Added under the square root. A finite number >= 0.
    momentum : float, default 0.9
        Decay rate of the velocity. A finite number >= 0.
    lr_inside : bool, default False
        The velocity accumulates steps, lr and all (differs once lr changes).
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, square_avg, momentum_buffer, grad_avg = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2), np.zeros(2)
    >>> fastopt.functional.rmsprop_centered_momentum(p, 2 * p, square_avg, momentum_buffer, grad_avg, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [-0.005038, -0.994962]
    """

def ftrl(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    accumulator: Array | Sequence[Array],
    linear: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    beta: Number = 1.0,
    l1: Number = 0.0,
    l2: Number = 0.0,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of ftrl, in place.

    Follow the regularised leader: Adagrad's rates, and parameters that an L1 penalty makes exactly
    0.

    ::

        z += g - (sqrt(n + g^2) - sqrt(n))/lr*p
        n += g^2
        p = 0 where |z| <= l1, else (sign(z)*l1 - z)/((beta + sqrt(n))/lr + l2)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    n is ``accumulator``, z ``linear``. The parameter follows from them: what it was at first is
    forgotten, but for its part in z. At ``lr=0`` all stays as it is. Keras's and TensorFlow's l2 is
    half of this one.

    Source: McMahan et al. 2013, Ad click prediction, algorithm 1.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    accumulator, linear : array, or list of arrays
        States, which are updated too. They begin at zero, accumulator at the class's
        initial_accumulator_value.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate (alpha in the paper). A finite number >= 0.
    beta : float, default 1.0
        Added to the square root of n. A finite number >= 0.
    l1 : float, default 0.0
        L1 penalty, which makes parameters exactly 0. A finite number >= 0.
    l2 : float, default 0.0
        L2 penalty, on the parameter that the sums lead to. A finite number >= 0.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, accumulator, linear = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    >>> fastopt.functional.ftrl(p, 2 * p, accumulator, linear, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.6, -1.52]
    """

def adam(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    exp_avg: Array | Sequence[Array],
    exp_avg_sq: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-08,
    eps_root: Number = 0.0,
    bias_correction: bool = True,
    eps_hat: bool = False,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of adam, in place.

    The average gradient over the root of the average squared gradient, both corrected for their
    start at 0.

    ::

        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g^2
        p -= lr*m^/(sqrt(v^ + eps_root) + eps), m^ = m/(1 - beta1^t), v^ = v/(1 - beta2^t)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    ``eps_hat=True`` is the form at the end of section 2 of Kingma and Ba, which is Keras's: p -=
    lr*sqrt(1 - beta2^t)/(1 - beta1^t)*m/(sqrt(v) + eps).

    Source: Kingma and Ba 2015, arXiv:1412.6980; torch.optim.Adam.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    exp_avg, exp_avg_sq : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    beta1 : float, default 0.9
        Decay rate of the gradient's average. A number in [0, 1).
    beta2 : float, default 0.999
        Decay rate of the squared gradient's average. A number in [0, 1).
    eps : float, default 1e-08
        Added to the denominator. A finite number >= 0.
    eps_root : float, default 0.0
        Added under the square root. A finite number >= 0.
    bias_correction : bool, default True
        Divide the averages by 1 - beta^t.
    eps_hat : bool, default False
        Divide eps by sqrt(1 - beta2^t), as where it is added to sqrt(v), not to sqrt(v^).
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, exp_avg, exp_avg_sq = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    >>> fastopt.functional.adam(p, 2 * p, exp_avg, exp_avg_sq, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

def amsgrad(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    exp_avg: Array | Sequence[Array],
    exp_avg_sq: Array | Sequence[Array],
    max_exp_avg_sq: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-08,
    eps_root: Number = 0.0,
    bias_correction: bool = True,
    eps_hat: bool = False,
    max_corrected: bool = False,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of amsgrad, in place.

    Adam with the largest average of squares so far, so that no element's rate grows again.

    ::

        as adam, with x = max(x, v) in place of v

    and adam is::

        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g^2
        p -= lr*m^/(sqrt(v^ + eps_root) + eps), m^ = m/(1 - beta1^t), v^ = v/(1 - beta2^t)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    As torch: the maximum is over the raw v and then corrected. ``bias_correction=False`` is the
    paper's form, ``max_corrected=True`` optax's.

    ``eps_hat=True`` is the form at the end of section 2 of Kingma and Ba, which is Keras's: p -=
    lr*sqrt(1 - beta2^t)/(1 - beta1^t)*m/(sqrt(v) + eps).

    Source: Reddi et al. 2018, arXiv:1904.09237; torch.optim.Adam(amsgrad=True).

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    exp_avg, exp_avg_sq, max_exp_avg_sq : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    beta1 : float, default 0.9
        Decay rate of the gradient's average. A number in [0, 1).
    beta2 : float, default 0.999
        Decay rate of the squared gradient's average. A number in [0, 1).
    eps : float, default 1e-08
        Added to the denominator. A finite number >= 0.
    eps_root : float, default 0.0
        Added under the square root. A finite number >= 0.
    bias_correction : bool, default True
        Divide the averages by 1 - beta^t.
    eps_hat : bool, default False
        Divide eps by sqrt(1 - beta2^t), as where it is added to sqrt(v), not to sqrt(v^).
    max_corrected : bool, default False
        Take the maximum over v^, not over v, which is then corrected.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, exp_avg, exp_avg_sq, max_exp_avg_sq = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2), np.zeros(2)
    >>> fastopt.functional.amsgrad(p, 2 * p, exp_avg, exp_avg_sq, max_exp_avg_sq, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

def adamw(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    exp_avg: Array | Sequence[Array],
    exp_avg_sq: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-08,
    eps_root: Number = 0.0,
    bias_correction: bool = True,
    eps_hat: bool = False,
    weight_decay: Number = 0.01,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of adamw, in place.

    Adam with decoupled weight decay: each step shrinks the parameter by lr*weight_decay of itself.

    ::

        p -= lr*weight_decay*p, then as adam

    and adam is::

        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g^2
        p -= lr*m^/(sqrt(v^ + eps_root) + eps), m^ = m/(1 - beta1^t), v^ = v/(1 - beta2^t)

    Here g is grad_scale*grad, its sign flipped by ``maximize``.

    ``eps_hat=True`` is the form at the end of section 2 of Kingma and Ba, which is Keras's: p -=
    lr*sqrt(1 - beta2^t)/(1 - beta1^t)*m/(sqrt(v) + eps).

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; torch.optim.AdamW.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    exp_avg, exp_avg_sq : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    beta1 : float, default 0.9
        Decay rate of the gradient's average. A number in [0, 1).
    beta2 : float, default 0.999
        Decay rate of the squared gradient's average. A number in [0, 1).
    eps : float, default 1e-08
        Added to the denominator. A finite number >= 0.
    eps_root : float, default 0.0
        Added under the square root. A finite number >= 0.
    bias_correction : bool, default True
        Divide the averages by 1 - beta^t.
    eps_hat : bool, default False
        Divide eps by sqrt(1 - beta2^t), as where it is added to sqrt(v), not to sqrt(v^).
    weight_decay : float, default 0.01
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    more : as every function
        ``maximize``, ``grad_scale``, ``gradient_noise``, ``first_element``, ``backend``,
        ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, exp_avg, exp_avg_sq = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    >>> fastopt.functional.adamw(p, 2 * p, exp_avg, exp_avg_sq, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.899, -1.898]
    """

def adamw_amsgrad(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    exp_avg: Array | Sequence[Array],
    exp_avg_sq: Array | Sequence[Array],
    max_exp_avg_sq: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-08,
    eps_root: Number = 0.0,
    bias_correction: bool = True,
    eps_hat: bool = False,
    max_corrected: bool = False,
    weight_decay: Number = 0.01,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of adamw_amsgrad, in place.

    AMSGrad with decoupled weight decay.

    ::

        p -= lr*weight_decay*p, then as amsgrad

    and amsgrad is::

        as adam, with x = max(x, v) in place of v

    and adam is::

        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g^2
        p -= lr*m^/(sqrt(v^ + eps_root) + eps), m^ = m/(1 - beta1^t), v^ = v/(1 - beta2^t)

    Here g is grad_scale*grad, its sign flipped by ``maximize``.

    As torch: the maximum is over the raw v and then corrected. ``bias_correction=False`` is the
    paper's form, ``max_corrected=True`` optax's.

    ``eps_hat=True`` is the form at the end of section 2 of Kingma and Ba, which is Keras's: p -=
    lr*sqrt(1 - beta2^t)/(1 - beta1^t)*m/(sqrt(v) + eps).

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; torch.optim.AdamW(amsgrad=True).

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    exp_avg, exp_avg_sq, max_exp_avg_sq : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    beta1 : float, default 0.9
        Decay rate of the gradient's average. A number in [0, 1).
    beta2 : float, default 0.999
        Decay rate of the squared gradient's average. A number in [0, 1).
    eps : float, default 1e-08
        Added to the denominator. A finite number >= 0.
    eps_root : float, default 0.0
        Added under the square root. A finite number >= 0.
    bias_correction : bool, default True
        Divide the averages by 1 - beta^t.
    eps_hat : bool, default False
        Divide eps by sqrt(1 - beta2^t), as where it is added to sqrt(v), not to sqrt(v^).
    max_corrected : bool, default False
        Take the maximum over v^, not over v, which is then corrected.
    weight_decay : float, default 0.01
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    more : as every function
        ``maximize``, ``grad_scale``, ``gradient_noise``, ``first_element``, ``backend``,
        ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, exp_avg, exp_avg_sq, max_exp_avg_sq = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2), np.zeros(2)
    >>> fastopt.functional.adamw_amsgrad(p, 2 * p, exp_avg, exp_avg_sq, max_exp_avg_sq, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.899, -1.898]
    """

def adamax(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    exp_avg: Array | Sequence[Array],
    exp_inf: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.002,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-08,
    eps_outside: bool = False,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of adamax, in place.

    Adam with a decaying maximum of the gradient's magnitude in place of the root of the average
    square.

    ::

        m = beta1*m + (1 - beta1)*g
        u = max(beta2*u, |g| + eps)
        p -= lr/(1 - beta1^t)*m/u

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    ``eps=0`` is the paper's form; there u = 0 gives a zero update. ``eps_outside=True`` is Keras's:
    u = max(beta2*u, |g|); p -= lr/(1 - beta1^t)*m/(u + eps).

    Source: Kingma and Ba 2015, section 7.1; torch.optim.Adamax.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    exp_avg, exp_inf : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.002
        Learning rate. A finite number >= 0.
    beta1 : float, default 0.9
        Decay rate of the gradient's average. A number in [0, 1).
    beta2 : float, default 0.999
        Decay rate of the squared gradient's average. A number in [0, 1).
    eps : float, default 1e-08
        Added to |g| in the maximum. A finite number >= 0.
    eps_outside : bool, default False
        Add eps to the maximum instead.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, exp_avg, exp_inf = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    >>> fastopt.functional.adamax(p, 2 * p, exp_avg, exp_inf, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

def nadam(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    exp_avg: Array | Sequence[Array],
    exp_avg_sq: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.002,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-08,
    momentum_decay: Number | None = 0.004,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    mu_product: Number | None = None,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of nadam, in place.

    Adam with Nesterov's momentum, under a schedule of its own.

    ::

        m, v as adam
        mu_t = beta1*(1 - 0.96^(t*momentum_decay)/2)
        p -= lr*(mu_{t+1}*m/(1 - prod mu_{<=t+1}) + (1 - mu_t)*g/(1 - prod mu_{<=t}))/(sqrt(v^) + eps)

    and adam is::

        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g^2
        p -= lr*m^/(sqrt(v^ + eps_root) + eps), m^ = m/(1 - beta1^t), v^ = v/(1 - beta2^t)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    ``momentum_decay=1`` is Keras's form, ``math.inf``, a constant momentum, optax's; with ``None``
    p -= lr*(beta1*m^ + (1 - beta1)*g/(1 - beta1^t))/(sqrt(v^) + eps), the form of Ruder's overview.

    Source: Dozat 2016; torch.optim.NAdam.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    exp_avg, exp_avg_sq : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.002
        Learning rate. A finite number >= 0.
    beta1 : float, default 0.9
        Decay rate of the gradient's average. A number in [0, 1).
    beta2 : float, default 0.999
        Decay rate of the squared gradient's average. A number in [0, 1).
    eps : float, default 1e-08
        Added to the denominator. A finite number >= 0.
    momentum_decay : float or None, default 0.004
        Psi; infinity: a constant momentum, beta1; None: the same in Ruder's form. A finite number
        >= 0, infinity.
    mu_product : float, optional
        Its value before this step; by default that of constant hyper-parameters.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, exp_avg, exp_avg_sq = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    >>> fastopt.functional.nadam(p, 2 * p, exp_avg, exp_avg_sq, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.894355, -1.894355]
    """

def qhadam(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    exp_avg: Array | Sequence[Array],
    exp_avg_sq: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-08,
    nu1: Number = 1.0,
    nu2: Number = 1.0,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of qhadam, in place.

    Quasi-hyperbolic Adam: weighted means of the gradient and its average, and of their squares.

    ::

        as adam, with (1 - nu1)*g + nu1*m^ in place of m^ and (1 - nu2)*g^2 + nu2*v^ in place of v^

    and adam is::

        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g^2
        p -= lr*m^/(sqrt(v^ + eps_root) + eps), m^ = m/(1 - beta1^t), v^ = v/(1 - beta2^t)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    nus = (1, 1) is Adam; the paper recommends (0.7, 1) with betas (0.995, 0.999).

    Source: Ma and Yarats 2019, arXiv:1810.06801.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    exp_avg, exp_avg_sq : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    beta1 : float, default 0.9
        Decay rate of the gradient's average. A number in [0, 1).
    beta2 : float, default 0.999
        Decay rate of the squared gradient's average. A number in [0, 1).
    eps : float, default 1e-08
        Added to the denominator. A finite number >= 0.
    nu1 : float, default 1.0
        Weight of the average against the gradient. A number in [0, 1].
    nu2 : float, default 1.0
        Weight of the average against the squared gradient. A number in [0, 1].
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, exp_avg, exp_avg_sq = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    >>> fastopt.functional.qhadam(p, 2 * p, exp_avg, exp_avg_sq, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

def adabound(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    exp_avg: Array | Sequence[Array],
    exp_avg_sq: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-08,
    final_lr: Number = 0.1,
    gamma: Number = 0.001,
    base_lr: Number | None = None,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of adabound, in place.

    Adam whose rates are clamped between bounds that close in on the rate of an SGD.

    ::

        m, v as adam
        r = lr*sqrt(1 - beta2^t)/(1 - beta1^t)/(sqrt(v) + eps) clamped to [f*(1 - 1/(gamma*t + 1)), f*(1 + 1/(gamma*t))], f = final_lr*lr/base_lr
        p -= r*m

    and adam is::

        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g^2
        p -= lr*m^/(sqrt(v^ + eps_root) + eps), m^ = m/(1 - beta1^t), v^ = v/(1 - beta2^t)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    Source: Luo et al. 2019, arXiv:1902.09843; the authors' package adabound.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    exp_avg, exp_avg_sq : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    beta1 : float, default 0.9
        Decay rate of the gradient's average. A number in [0, 1).
    beta2 : float, default 0.999
        Decay rate of the squared gradient's average. A number in [0, 1).
    eps : float, default 1e-08
        Added to the denominator. A finite number >= 0.
    final_lr : float, default 0.1
        The learning rate of the SGD that the rule goes over into. A finite number >= 0.
    gamma : float, default 0.001
        How fast the bounds close. A finite number > 0.
    base_lr : float or None, default None
        The lr that final_lr belongs to; None: lr itself. A finite number > 0.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, exp_avg, exp_avg_sq = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    >>> fastopt.functional.adabound(p, 2 * p, exp_avg, exp_avg_sq, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

def amsbound(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    exp_avg: Array | Sequence[Array],
    exp_avg_sq: Array | Sequence[Array],
    max_exp_avg_sq: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-08,
    final_lr: Number = 0.1,
    gamma: Number = 0.001,
    base_lr: Number | None = None,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of amsbound, in place.

    AdaBound with the largest average of squares so far.

    ::

        as adabound, with x = max(x, v) in place of v

    and adabound is::

        m, v as adam
        r = lr*sqrt(1 - beta2^t)/(1 - beta1^t)/(sqrt(v) + eps) clamped to [f*(1 - 1/(gamma*t + 1)), f*(1 + 1/(gamma*t))], f = final_lr*lr/base_lr
        p -= r*m

    and adam is::

        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g^2
        p -= lr*m^/(sqrt(v^ + eps_root) + eps), m^ = m/(1 - beta1^t), v^ = v/(1 - beta2^t)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    Source: Luo et al. 2019, arXiv:1902.09843; the authors' package adabound (amsbound=True).

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    exp_avg, exp_avg_sq, max_exp_avg_sq : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    beta1 : float, default 0.9
        Decay rate of the gradient's average. A number in [0, 1).
    beta2 : float, default 0.999
        Decay rate of the squared gradient's average. A number in [0, 1).
    eps : float, default 1e-08
        Added to the denominator. A finite number >= 0.
    final_lr : float, default 0.1
        The learning rate of the SGD that the rule goes over into. A finite number >= 0.
    gamma : float, default 0.001
        How fast the bounds close. A finite number > 0.
    base_lr : float or None, default None
        The lr that final_lr belongs to; None: lr itself. A finite number > 0.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, exp_avg, exp_avg_sq, max_exp_avg_sq = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2), np.zeros(2)
    >>> fastopt.functional.amsbound(p, 2 * p, exp_avg, exp_avg_sq, max_exp_avg_sq, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

def adabelief(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    exp_avg: Array | Sequence[Array],
    exp_avg_var: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-16,
    eps_root: Number = 1e-16,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of adabelief, in place.

    Adam with the average square of the gradient's distance from its average in place of its own.

    ::

        m = beta1*m + (1 - beta1)*g
        s = beta2*s + (1 - beta2)*(g - m)^2 + eps_root
        p -= lr*m^/(sqrt(s^) + eps), m^ = m/(1 - beta1^t), s^ = s/(1 - beta2^t)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    Source: Zhuang et al. 2020, arXiv:2010.07468.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    exp_avg, exp_avg_var : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    beta1 : float, default 0.9
        Decay rate of the gradient's average. A number in [0, 1).
    beta2 : float, default 0.999
        Decay rate of the squared gradient's average. A number in [0, 1).
    eps : float, default 1e-16
        Added to the denominator. A finite number >= 0.
    eps_root : float, default 1e-16
        Added to the average of squares at each step. A finite number >= 0.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, exp_avg, exp_avg_var = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    >>> fastopt.functional.adabelief(p, 2 * p, exp_avg, exp_avg_var, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.888889, -1.888889]
    """

def radam(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    exp_avg: Array | Sequence[Array],
    exp_avg_sq: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-08,
    eps_hat: bool = True,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of radam, in place.

    Adam with a rate that is rectified for the variance of young averages of squares; before,
    momentum.

    ::

        m, v as adam
        rho = rho_inf - 2*t*beta2^t/(1 - beta2^t), rho_inf = 2/(1 - beta2) - 1
        p -= lr*m^*r*sqrt(1 - beta2^t)/(sqrt(v) + eps) where rho > 5, else p -= lr*m^, r = sqrt((rho - 4)*(rho - 2)*rho_inf/((rho_inf - 4)*(rho_inf - 2)*rho))

    and adam is::

        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g^2
        p -= lr*m^/(sqrt(v^ + eps_root) + eps), m^ = m/(1 - beta1^t), v^ = v/(1 - beta2^t)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    Source: Liu et al. 2020, arXiv:1908.03265; torch.optim.RAdam.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    exp_avg, exp_avg_sq : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    beta1 : float, default 0.9
        Decay rate of the gradient's average. A number in [0, 1).
    beta2 : float, default 0.999
        Decay rate of the squared gradient's average. A number in [0, 1).
    eps : float, default 1e-08
        Added to the denominator. A finite number >= 0.
    eps_hat : bool, default True
        Add eps to sqrt(v), as torch; else to sqrt(v^).
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, exp_avg, exp_avg_sq = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    >>> fastopt.functional.radam(p, 2 * p, exp_avg, exp_avg_sq, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.8, -1.6]
    """

def adan(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    exp_avg: Array | Sequence[Array],
    exp_avg_diff: Array | Sequence[Array],
    exp_avg_sq: Array | Sequence[Array],
    neg_pre_grad: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    beta1: Number = 0.98,
    beta2: Number = 0.92,
    beta3: Number = 0.99,
    eps: Number = 1e-08,
    eps_root: Number = 0.0,
    difference_weight: Number | None = None,
    proximal_weight_decay: Number = 0.0,
    weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of adan, in place.

    Adam with Nesterov's momentum from averages of the gradient and of its change.

    ::

        d = g - prev, 0 at first
        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*d
        n = beta3*n + (1 - beta3)*(g + beta2*d)^2
        p -= lr*weight_decay*p
        p -= lr*(m^ + beta2*v^)/(sqrt(n^ + eps_root) + eps), m^ = m/(1 - beta1^t), v^ = v/(1 - beta2^t), n^ = n/(1 - beta3^t)
        p /= 1 + lr*proximal_weight_decay

    Here g is grad_scale*grad, its sign flipped by ``maximize``.

    ``proximal_weight_decay`` is the authors' ``weight_decay``, ``weight_decay`` the same with their
    ``no_prox=True``. The state ``neg_pre_grad`` is -1 times the gradient before.

    Source: Xie et al. 2022, arXiv:2208.06677; the authors' code, sail-sg/Adan.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    exp_avg, exp_avg_diff, exp_avg_sq, neg_pre_grad : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    beta1 : float, default 0.98
        Decay rate of the gradient's average. A number in [0, 1).
    beta2 : float, default 0.92
        Decay rate of the average of its change. A number in [0, 1).
    beta3 : float, default 0.99
        Decay rate of the average of squares. A number in [0, 1).
    eps : float, default 1e-08
        Added to the denominator. A finite number >= 0.
    eps_root : float, default 0.0
        Added under the square root. A finite number >= 0.
    difference_weight : float or None, default None
        Weight of the gradient's change in a step; None: beta2. A finite number >= 0.
    proximal_weight_decay : float, default 0.0
        The parameter is divided by 1 + lr times it, after the update. A finite number >= 0.
    weight_decay : float, default 0.0
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    more : as every function
        ``maximize``, ``grad_scale``, ``gradient_noise``, ``first_element``, ``backend``,
        ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, exp_avg, exp_avg_diff, exp_avg_sq, neg_pre_grad = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2)
    >>> fastopt.functional.adan(p, 2 * p, exp_avg, exp_avg_diff, exp_avg_sq, neg_pre_grad, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

def ademamix(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    exp_avg: Array | Sequence[Array],
    exp_avg_slow: Array | Sequence[Array],
    exp_avg_sq: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    beta3: Number = 0.9999,
    alpha: Number = 5.0,
    warmup: Number | None = None,
    eps: Number = 1e-08,
    eps_root: Number = 0.0,
    weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of ademamix, in place.

    Adam with a second, slow average of the gradient.

    ::

        m, v as adam
        s = beta3*s + (1 - beta3)*g
        p -= lr*weight_decay*p
        p -= lr*(m^ + alpha*s)/(sqrt(v^ + eps_root) + eps)

    and adam is::

        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g^2
        p -= lr*m^/(sqrt(v^ + eps_root) + eps), m^ = m/(1 - beta1^t), v^ = v/(1 - beta2^t)

    Here g is grad_scale*grad, its sign flipped by ``maximize``.

    Source: Pagliardini et al. 2024, arXiv:2409.03137; Apple's ml-ademamix.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    exp_avg, exp_avg_slow, exp_avg_sq : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    beta1 : float, default 0.9
        Decay rate of the gradient's fast average. A number in [0, 1).
    beta2 : float, default 0.999
        Decay rate of the squared gradient's average. A number in [0, 1).
    beta3 : float, default 0.9999
        Decay rate of the gradient's slow average. A number in [0, 1).
    alpha : float, default 5.0
        Weight of the slow average. A finite number >= 0.
    warmup : float or None, default None
        Steps over which alpha grows from 0, and the half-life of the slow average from the fast
        one's; None: none. A finite number > 0.
    eps : float, default 1e-08
        Added to the denominator. A finite number >= 0.
    eps_root : float, default 0.0
        Added under the square root. A finite number >= 0.
    weight_decay : float, default 0.0
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    more : as every function
        ``maximize``, ``grad_scale``, ``gradient_noise``, ``first_element``, ``backend``,
        ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, exp_avg, exp_avg_slow, exp_avg_sq = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2), np.zeros(2)
    >>> fastopt.functional.ademamix(p, 2 * p, exp_avg, exp_avg_slow, exp_avg_sq, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.89995, -1.89995]
    """

def schedule_free_adamw(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    z_offset: Array | Sequence[Array],
    exp_avg_sq: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.0025,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-08,
    warmup_steps: Number = 0.0,
    weight_step_power: Number = 0.0,
    weight_lr_power: Number = 2.0,
    weight_decay: Number = 0.0,
    maximize: bool = False,
    weight_sum: Number | None = None,
    lr_max: Number | None = None,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of schedule_free_adamw, in place.

    AdamW without a schedule: iterates z are averaged to x, and gradients are taken in between.

    ::

        d = z - p
        v = beta2*v + (1 - beta2)*g^2
        u = weight_decay*p + g/(sqrt(v/(1 - beta2^t)) + eps)
        p -= gamma*(1 - beta1*(1 - c))*u - c*d
        d = (1 - c)*(d - gamma*beta1*u), gamma and c as schedule_free_sgd

    and schedule_free_sgd is::

        d = z - p
        p -= gamma*(1 - momentum*(1 - c))*g - c*d
        d = (1 - c)*(d - gamma*momentum*g), gamma = lr*min(1, t/warmup_steps), c = w_t/sum of w_{<=t}, w_t = t^weight_step_power*(max gamma_{<=t})^weight_lr_power

    Here g is grad_scale*grad, its sign flipped by ``maximize``.

    In the paper's letters p is y = (1 - beta1)*z + beta1*x, and ``z_offset`` z - y. What is to be
    evaluated is x = y - (1 - beta1)/beta1*z_offset. The decay is of the direction, at y.

    Source: Defazio et al. 2024, arXiv:2405.15682; the authors' package schedulefree.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    z_offset, exp_avg_sq : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.0025
        Learning rate. A finite number >= 0.
    beta1 : float, default 0.9
        Where the gradient is taken: 1 at the average x, 0 at z. A number in [4.94066e-324, 1).
    beta2 : float, default 0.999
        Decay rate of the squared gradient's average. A number in [0, 1).
    eps : float, default 1e-08
        Added to the denominator. A finite number >= 0.
    warmup_steps : float, default 0.0
        Steps over which the learning rate rises from 0. A finite number >= 0.
    weight_step_power : float, default 0.0
        Power of the step's number in its weight (r in the paper). A number in [0, 10].
    weight_lr_power : float, default 2.0
        Power of the largest learning rate so far in a step's weight. A finite number >= 0.
    weight_decay : float, default 0.0
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    weight_sum : float, optional
        Its value before this step; by default that of constant hyper-parameters.
    lr_max : float, optional
        Its value before this step; by default that of constant hyper-parameters.
    more : as every function
        ``maximize``, ``grad_scale``, ``gradient_noise``, ``first_element``, ``backend``,
        ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, z_offset, exp_avg_sq = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    >>> fastopt.functional.schedule_free_adamw(p, 2 * p, z_offset, exp_avg_sq, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

def lars(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    momentum_buffer: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 1.0,
    momentum: Number = 0.9,
    trust_coefficient: Number = 0.001,
    eps: Number = 0.0,
    lr_inside: bool = False,
    decay_inside: bool = False,
    weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of lars, in place.

    Momentum with a rate for each tensor: the parameter's norm over the gradient's.

    ::

        r = trust_coefficient*norm(p)/(norm(g) + weight_decay*norm(p) + eps), 1 where a norm is 0
        b = momentum*b + r*(g + weight_decay*p)
        p -= lr*b

    Here g is grad_scale*grad, its sign flipped by ``maximize``.

    ``lr_inside=True`` is the form of the paper and of optax: b = momentum*b + lr*r*(...); p -= b.
    optax has ``decay_inside=True`` too.

    The norms are of whole tensors, summed in float64. An element that is not finite makes all of
    its tensor so. Gradients of some rows and 'state_memory' are refused.

    Source: You et al. 2017, arXiv:1708.03888.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    momentum_buffer : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 1.0
        Learning rate. A finite number >= 0.
    momentum : float, default 0.9
        Decay rate of the velocity. A number in [0, 1).
    trust_coefficient : float, default 0.001
        The length of a step beside the parameter's norm, at lr 1. A finite number >= 0.
    eps : float, default 0.0
        Added to the denominator. A finite number >= 0.
    lr_inside : bool, default False
        The velocity accumulates steps, lr and all (differs once lr changes).
    decay_inside : bool, default False
        Norm(g + weight_decay*p) is below, in place of the two norms.
    weight_decay : float, default 0.0
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    more : as every function
        ``maximize``, ``grad_scale``, ``gradient_noise``, ``first_element``, ``backend``,
        ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, momentum_buffer = np.array([1.0, -2.0]), np.zeros(2)
    >>> fastopt.functional.lars(p, 2 * p, momentum_buffer, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.9999, -1.9998]
    """

def lamb(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    exp_avg: Array | Sequence[Array],
    exp_avg_sq: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-06,
    eps_root: Number = 0.0,
    weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of lamb, in place.

    Adam with a rate for each tensor: the parameter's norm over the step's.

    ::

        m, v as adam
        u = m^/(sqrt(v^ + eps_root) + eps) + weight_decay*p
        p -= lr*norm(p)/norm(u)*u, the quotient 1 where a norm is 0

    and adam is::

        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g^2
        p -= lr*m^/(sqrt(v^ + eps_root) + eps), m^ = m/(1 - beta1^t), v^ = v/(1 - beta2^t)

    Here g is grad_scale*grad, its sign flipped by ``maximize``.

    The norms are of whole tensors, summed in float64. An element that is not finite makes all of
    its tensor so. Gradients of some rows and 'state_memory' are refused.

    Source: You et al. 2020, arXiv:1904.00962.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    exp_avg, exp_avg_sq : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    beta1 : float, default 0.9
        Decay rate of the gradient's average. A number in [0, 1).
    beta2 : float, default 0.999
        Decay rate of the squared gradient's average. A number in [0, 1).
    eps : float, default 1e-06
        Added to the denominator. A finite number >= 0.
    eps_root : float, default 0.0
        Added under the square root. A finite number >= 0.
    weight_decay : float, default 0.0
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    more : as every function
        ``maximize``, ``grad_scale``, ``gradient_noise``, ``first_element``, ``backend``,
        ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, exp_avg, exp_avg_sq = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    >>> fastopt.functional.lamb(p, 2 * p, exp_avg, exp_avg_sq, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.841886, -1.841886]
    """

def novograd(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    exp_avg: Array | Sequence[Array],
    exp_avg_sq: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    beta1: Number = 0.95,
    beta2: Number = 0.98,
    eps: Number = 1e-08,
    eps_root: Number = 0.0,
    grad_averaging: bool = False,
    weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of novograd, in place.

    Momentum with gradients over an average of their norms, one number for each tensor.

    ::

        v = beta2*v + (1 - beta2)*norm(g)^2, at first norm(g)^2
        m = beta1*m + (g/(sqrt(v + eps_root) + eps) + weight_decay*p)*(1 - beta1 if grad_averaging else 1)
        p -= lr*m

    Here g is grad_scale*grad, its sign flipped by ``maximize``.

    The norms are of whole tensors, summed in float64. An element that is not finite makes all of
    its tensor so. Gradients of some rows and 'state_memory' are refused.

    Source: Ginsburg et al. 2019, arXiv:1905.11286.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    exp_avg, exp_avg_sq : array, or list of arrays
        States, which are updated too (exp_avg_sq of shape ``()``). They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    beta1 : float, default 0.95
        Decay rate of the velocity. A number in [0, 1).
    beta2 : float, default 0.98
        Decay rate of the squared norm's average. A number in [0, 1).
    eps : float, default 1e-08
        Added to the denominator. A finite number >= 0.
    eps_root : float, default 0.0
        Added under the square root. A finite number >= 0.
    grad_averaging : bool, default False
        The velocity is an average: what is added to it is times 1 - beta1.
    weight_decay : float, default 0.0
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    more : as every function
        ``maximize``, ``grad_scale``, ``gradient_noise``, ``first_element``, ``backend``,
        ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, exp_avg, exp_avg_sq = np.array([1.0, -2.0]), np.zeros(2), np.zeros(())
    >>> fastopt.functional.novograd(p, 2 * p, exp_avg, exp_avg_sq, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.955279, -1.910557]
    """

def swats(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    exp_avg: Array | Sequence[Array],
    exp_avg_sq: Array | Sequence[Array],
    exp_avg2: Array | Sequence[Array],
    phase: Array | Sequence[Array],
    rate: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-09,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of swats, in place.

    Adam until a tensor's steps settle on the length that SGD's would have, then SGD with momentum.

    ::

        m, v as adam
        d = lr*sqrt(1 - beta2^t)/(1 - beta1^t)*m/(sqrt(v) + eps)
        p -= d
        e = sum(d*d)/sum(d*g)
        a = beta2*a + (1 - beta2)*e
        r = a/(1 - beta2^t)
        after a step t > 1 with r > 0 within eps of e, with this r: b = beta1*b + g
        p -= (1 - beta1)*r*b

    and adam is::

        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g^2
        p -= lr*m^/(sqrt(v^ + eps_root) + eps), m^ = m/(1 - beta1^t), v^ = v/(1 - beta2^t)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    ``over='all'`` is the paper's: the sums are of all tensors, which change over together.
    ``phase`` is 1 from then on, and ``exp_avg``, from zero, the velocity.

    The norms are of whole tensors, summed in float64. An element that is not finite makes all of
    its tensor so. Gradients of some rows and 'state_memory' are refused.

    Source: Keskar and Socher 2017, arXiv:1712.07628.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    exp_avg, exp_avg_sq, exp_avg2, phase, rate : array, or list of arrays
        States, which are updated too (exp_avg2, phase, rate of shape ``()``). They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate of Adam. A finite number >= 0.
    beta1 : float, default 0.9
        Decay rate of the gradient's average, and then of the velocity. A number in [0, 1).
    beta2 : float, default 0.999
        Decay rate of the other averages, the rate's too. A number in [0, 1).
    eps : float, default 1e-09
        Added to the denominator; how near the rate comes to its average. A finite number >= 0.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, exp_avg, exp_avg_sq, exp_avg2, phase, rate = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2), np.zeros(()), np.zeros(()), np.zeros(())
    >>> fastopt.functional.swats(p, 2 * p, exp_avg, exp_avg_sq, exp_avg2, phase, rate, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

def swats_over_all(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    exp_avg: Array | Sequence[Array],
    exp_avg_sq: Array | Sequence[Array],
    exp_avg2: Array | Sequence[Array],
    phase: Array | Sequence[Array],
    rate: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-09,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of swats_over_all, in place.

    SWATS with one rate for all tensors, which change over together.

    ::

        as swats, with the sums of all tensors

    and swats is::

        m, v as adam
        d = lr*sqrt(1 - beta2^t)/(1 - beta1^t)*m/(sqrt(v) + eps)
        p -= d
        e = sum(d*d)/sum(d*g)
        a = beta2*a + (1 - beta2)*e
        r = a/(1 - beta2^t)
        after a step t > 1 with r > 0 within eps of e, with this r: b = beta1*b + g
        p -= (1 - beta1)*r*b

    and adam is::

        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g^2
        p -= lr*m^/(sqrt(v^ + eps_root) + eps), m^ = m/(1 - beta1^t), v^ = v/(1 - beta2^t)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    ``over='all'`` is the paper's: the sums are of all tensors, which change over together.
    ``phase`` is 1 from then on, and ``exp_avg``, from zero, the velocity.

    The norms are of whole tensors, summed in float64. An element that is not finite makes all of
    its tensor so. Gradients of some rows and 'state_memory' are refused.

    Source: Keskar and Socher 2017, arXiv:1712.07628.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    exp_avg, exp_avg_sq, exp_avg2, phase, rate : array, or list of arrays
        States, which are updated too (exp_avg2, phase, rate of shape ``()``). They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate of Adam. A finite number >= 0.
    beta1 : float, default 0.9
        Decay rate of the gradient's average, and then of the velocity. A number in [0, 1).
    beta2 : float, default 0.999
        Decay rate of the other averages, the rate's too. A number in [0, 1).
    eps : float, default 1e-09
        Added to the denominator; how near the rate comes to its average. A finite number >= 0.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, exp_avg, exp_avg_sq, exp_avg2, phase, rate = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2), np.zeros(()), np.zeros(()), np.zeros(())
    >>> fastopt.functional.swats_over_all(p, 2 * p, exp_avg, exp_avg_sq, exp_avg2, phase, rate, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

def prodigy(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    exp_avg: Array | Sequence[Array],
    exp_avg_sq: Array | Sequence[Array],
    s: Array | Sequence[Array],
    p0: Array | Sequence[Array],
    d: Array | Sequence[Array],
    d_max: Array | Sequence[Array],
    d_numerator: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 1.0,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    beta3: Number | None = None,
    eps: Number = 1e-08,
    decouple: bool = True,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
    d0: Number = 1e-06,
    d_coef: Number = 1.0,
    growth_rate: Number | None = None,
    weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of prodigy, in place.

    Adam that finds its own learning rate, by how far parameters have come from where they began.

    ::

        m = beta1*m + (1 - beta1)*d*g
        v = beta2*v + (1 - beta2)*(d*g)^2
        s = beta3*s + d^2/d0*lr*g, r = beta3*r + sum(d^2/d0*lr*g*(p0 - p))
        d_max = max(d_max, d_coef*r/sum(abs(s)))
        p -= lr*d*(m/(sqrt(v) + d'*eps) + weight_decay*p), d' = min(d_max, growth_rate*d) the next step's d

    Here g is grad_scale*grad, its sign flipped by ``maximize``.

    d goes by the first parameter's group; one with lr 0 is not measured. The sums, in float64, are
    of all tensors, which share the states of one number. Refused are gradients of some rows,
    'state_memory', shards, `fastopt.distributed.Synchronous`, and float64 parameters beside others.

    Source: Mishchenko and Defazio 2023, arXiv:2306.06101; the authors' package prodigyopt.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    exp_avg, exp_avg_sq, s, p0, d, d_max, d_numerator : array, or list of arrays
        States, which are updated too (d, d_max, d_numerator of shape ``()``). They begin at zero, d
        at the class's d0, d_max at the class's d0, p0 at the parameter.
    step : int
        The 1-based number of this step.
    lr : float, default 1.0
        A factor of the learning rate that is found. A finite number >= 0.
    beta1 : float, default 0.9
        Decay rate of the gradient's average. A number in [0, 1).
    beta2 : float, default 0.999
        Decay rate of the squared gradient's average. A number in [0, 1).
    beta3 : float or None, default None
        Decay rate of the sums, by default sqrt(beta2). A number in [0, 1).
    eps : float, default 1e-08
        Added to the denominator, times d. A finite number > 0.
    decouple : bool, default True
        ``weight_decay`` is of the parameter itself, else L2.
    use_bias_correction : bool, default False
        The rate is times sqrt(1 - beta2^t)/(1 - beta1^t).
    safeguard_warmup : bool, default False
        What the estimate is over is without lr, which may be small at first.
    d0 : float, default 1e-06
        The estimate d before the first step. A finite number > 0.
    d_coef : float, default 1.0
        A factor of the estimate. A finite number > 0.
    growth_rate : float or None, default None
        The estimate is at most so many times the last one, but for d0. A finite number > 0,
        infinity.
    weight_decay : float, default 0.0
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    more : as every function
        ``maximize``, ``grad_scale``, ``gradient_noise``, ``first_element``, ``backend``,
        ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, exp_avg, exp_avg_sq, s, p0, d, d_max, d_numerator = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2), np.zeros(2), np.array([1.0, -2.0]), np.full((), 1e-06), np.full((), 1e-06), np.zeros(())
    >>> fastopt.functional.prodigy(p, 2 * p, exp_avg, exp_avg_sq, s, p0, d, d_max, d_numerator, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [1.0, -2.0]
    """

def adaptive_revision(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    grad_sum: Array | Sequence[Array],
    z: Array | Sequence[Array],
    z_max: Array | Sequence[Array],
    snapshot: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.01,
    read: bool = True,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of adaptive_revision, in place.

    Adagrad for gradients that come late: the rates of those applied meanwhile are revised.

    ::

        b = s - r
        z += g^2 + 2*g*b
        m' = max(m, z)
        p -= lr*g/sqrt(m')
        p += (lr/sqrt(m) - lr/sqrt(m'))*b
        m = m'
        s += g
        r = s

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    s is ``grad_sum``, and r the ``snapshot``: the sum when the gradient's worker read the
    parameter. Each worker has one of its own, and all have the other states in common. With one
    worker, which reads after each step, b is 0, and the steps are those of
    ``Adagrad(initial_accumulator_value=1, eps=0)``. ``read=False`` leaves the snapshot as it is.
    8-bit states are too coarse for the difference of two sums.

    Source: McMahan and Streeter 2014, Delay-tolerant algorithms for asynchronous distributed online
    learning.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    grad_sum, z, z_max, snapshot : array, or list of arrays
        States, which are updated too. They begin at zero, z at the class's
        initial_accumulator_value, z_max at the class's initial_accumulator_value.
    step : int
        The 1-based number of this step.
    lr : float, default 0.01
        Learning rate. A finite number >= 0.
    read : bool, default True
        The gradient's worker reads the parameter after this step.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, grad_sum, z, z_max, snapshot = np.array([1.0, -2.0]), np.zeros(2), np.full(2, 1.0), np.full(2, 1.0), np.zeros(2)
    >>> fastopt.functional.adaptive_revision(p, 2 * p, grad_sum, z, z_max, snapshot, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.910557, -1.902986]
    """

def dc_asgd(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    backup: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    lambd: Number = 0.04,
    read: bool = True,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of dc_asgd, in place.

    SGD for gradients that come late, each corrected by its square to where the parameter is now.

    ::

        g' = g + lambd*g^2*(p - b)
        p -= lr*g'
        b = p

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    b is the ``backup``: the parameter as the gradient's worker read it, and each worker has one of
    its own. With one worker, which reads after each step, b is p, and the steps are those of
    ``SGD`` (of a parameter that no ``decoupled_weight_decay`` moves). ``read=False`` leaves the
    backup as it is. It is stored as the parameter is, or its master.

    Source: Zheng et al. 2017, arXiv:1609.08326.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    backup : array, or list of arrays
        States, which are updated too. They begin at zero, backup at the parameter.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    lambd : float, default 0.04
        Factor of the compensation. A finite number >= 0.
    read : bool, default True
        The gradient's worker reads the parameter after this step.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, backup = np.array([1.0, -2.0]), np.array([1.0, -2.0])
    >>> fastopt.functional.dc_asgd(p, 2 * p, backup, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.8, -1.6]
    """

def dc_asgd_adaptive(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    square_avg: Array | Sequence[Array],
    backup: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    lambd0: Number = 2.0,
    alpha: Number = 0.95,
    eps_root: Number = 1e-07,
    read: bool = True,
    weight_decay: Number = 0.0,
    decoupled_weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of dc_asgd_adaptive, in place.

    DC-ASGD whose factor is smaller where gradients are larger.

    ::

        s = alpha*s + (1 - alpha)*g^2
        as dc_asgd with lambd = lambd0/sqrt(s + eps_root)

    and dc_asgd is::

        g' = g + lambd*g^2*(p - b)
        p -= lr*g'
        b = p

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    b is the ``backup``: the parameter as the gradient's worker read it, and each worker has one of
    its own. With one worker, which reads after each step, b is p, and the steps are those of
    ``SGD`` (of a parameter that no ``decoupled_weight_decay`` moves). ``read=False`` leaves the
    backup as it is. It is stored as the parameter is, or its master.

    Source: Zheng et al. 2017, arXiv:1609.08326.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    square_avg, backup : array, or list of arrays
        States, which are updated too. They begin at zero, backup at the parameter.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    lambd0 : float, default 2.0
        Factor of the compensation, over the root of the average squared gradient. A finite number
        >= 0.
    alpha : float, default 0.95
        Decay rate of the average of squares. A number in [0, 1).
    eps_root : float, default 1e-07
        Added under the square root. A finite number > 0.
    read : bool, default True
        The gradient's worker reads the parameter after this step.
    more : as every function
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``grad_scale``,
        ``gradient_noise``, ``first_element``, ``backend``, ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, square_avg, backup = np.array([1.0, -2.0]), np.zeros(2), np.array([1.0, -2.0])
    >>> fastopt.functional.dc_asgd_adaptive(p, 2 * p, square_avg, backup, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.8, -1.6]
    """

def muon(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    momentum_buffer: Array | Sequence[Array],
    *,
    step: SupportsIndex,
    lr: Number = 0.001,
    momentum: Number = 0.95,
    nesterov: bool = True,
    ns_a: Number = 3.4445,
    ns_b: Number = -4.775,
    ns_c: Number = 2.0315,
    eps: Number = 1e-07,
    ns_steps: Number = 5,
    adjust_lr_fn: Literal['original', 'match_rms_adamw'] | None = None,
    weight_decay: Number = 0.1,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of muon, in place.

    Momentum, orthogonalized: a step against the nearest matrix whose singular values are all about
    1.

    ::

        b = momentum*b + (1 - momentum)*g
        u = momentum*b + (1 - momentum)*g, or b without nesterov
        x = u/max(norm(u), eps)
        x = h*x + (i*x*x' + j*(x*x')^2)*x, ns_steps times, h, i, j = ns_coefficients
        p -= lr*weight_decay*p
        p -= lr*sqrt(max(1, rows/columns))*x

    Here g is grad_scale*grad, its sign flipped by ``maximize``.

    Parameters are matrices, of two dimensions. Embeddings, biases and all others are another
    optimizer's.

    Matrices are multiplied by the arrays' own library, with its threads: torch's tensors in
    bfloat16, as it does that itself, CuPy's arrays and, by NumPy, all others on the CPU in float32
    (float64 of float64 parameters). The bits are the library's. An element that is not finite makes
    all of its matrix so. Gradients of some rows, 'state_memory' and
    `fastopt.distributed.Synchronous` are refused.

    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025,
    arXiv:2502.16982; torch.optim.Muon.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    momentum_buffer : array, or list of arrays
        States, which are updated too. They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.001
        Learning rate. A finite number >= 0.
    momentum : float, default 0.95
        Decay rate of the gradient's average. A finite number >= 0.
    nesterov : bool, default True
        The direction is the average's once more averaged with the gradient.
    ns_a : float, default 3.4445
        Coefficients of the polynomial.
    ns_b : float, default -4.775
        Coefficients of the polynomial.
    ns_c : float, default 2.0315
        Coefficients of the polynomial.
    eps : float, default 1e-07
        The least that the direction is divided by. A finite number >= 0.
    ns_steps : int, default 5
        Times that the polynomial is applied. An integer >= 0 and <= 99.
    adjust_lr_fn : str or None, default None
        The factor of lr: sqrt(max(1, rows/columns)), which None is too, or 0.2*sqrt(max(rows,
        columns)). One of original, match_rms_adamw.
    weight_decay : float, default 0.1
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    more : as every function
        ``maximize``, ``grad_scale``, ``gradient_noise``, ``first_element``, ``backend``,
        ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, momentum_buffer = np.array([[1.0, -2.0]]), np.zeros((1, 2))
    >>> fastopt.functional.muon(p, 2 * p, momentum_buffer, step=1, lr=0.1)
    >>> p.round(1).tolist()
    [[1.0, -1.9]]
    """

def adafactor(
    param: Array | Sequence[Array],
    grad: Gradient | Sequence[Gradient],
    row_var: Array | Sequence[Array | None] | None = None,
    col_var: Array | Sequence[Array | None] | None = None,
    variance: Array | Sequence[Array | None] | None = None,
    *,
    step: SupportsIndex,
    lr: Number = 0.01,
    beta2_decay: Number = -0.8,
    eps1: Number | None = None,
    eps2: Number = 0.001,
    d: Number = 1.0,
    relative_step: bool = True,
    scale_parameter: bool = True,
    weight_decay: Number = 0.0,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    gradient_noise: GradientNoise | None = None,
    first_element: SupportsIndex = 0,
    backend: str | None = None,
    threads: SupportsIndex | None = None,
) -> None:
    """One step of adafactor, in place.

    RMSprop with averages over rows and columns in place of an average for each element, and clipped
    steps.

    ::

        w = t^beta2_decay
        r = (1 - w)*r + w*mean(g^2), a mean a row
        c = (1 - w)*c + w*mean(g^2), a mean a column
        v = r*c/max(mean(r), eps1), or v = (1 - w)*v + w*g^2 of one dimension
        u = g/max(sqrt(v), eps1)
        a = min(lr, 1/sqrt(t))*max(eps2, rms(p))
        p -= lr*weight_decay*p
        p -= a*u/max(1, rms(u)/d)

    Here g is grad_scale*grad, its sign flipped by ``maximize``.

    Means and roots are NumPy's, in one thread, on the CPU, and on a device torch's or CuPy's; so
    are their bits. States are in float32, of float64 parameters in float64. An element that is not
    finite makes others of its tensor so. Gradients of some rows, 'state_memory', a 'state_dtype' of
    fewer bits and `fastopt.distributed.Synchronous` are refused.

    The epsilons are torch's. The paper adds its first, 1e-30, to each squared gradient instead:
    ``eps=(1e-30, 1e-3)`` is next to it. Its ``d`` is 1. ``relative_step=False`` takes lr as it is,
    as optax does; the paper's lr is 0.01.

    Source: Shazeer and Stern 2018, arXiv:1804.04235; torch.optim.Adafactor.

    Parameters
    ----------
    param, grad : array, or list of arrays
        The parameter, which is updated, and its gradient.
    row_var, col_var, variance : array, or list of arrays
        States, which are updated too (variance of one dimension or none; of more row_var and
        col_var, of size 1 in the last, the last but one). They begin at zero.
    step : int
        The 1-based number of this step.
    lr : float, default 0.01
        Learning rate, and the most that the relative one is. A finite number >= 0.
    beta2_decay : float, default -0.8
        Exponent of the step, which is a new square's weight. A finite number <= 0.
    eps1 : float or None, default None
        What a gradient is divided by at least, None for the eps of the parameter's dtype. A finite
        number >= 0.
    eps2 : float, default 0.001
        The size that a parameter has at least. A finite number >= 0.
    d : float, default 1.0
        The root mean square that updates are clipped to. A finite number >= 1, infinity.
    relative_step : bool, default True
        The rate is at most 1/sqrt(t).
    scale_parameter : bool, default True
        Steps are times the root mean square of the parameter, at least eps[1].
    weight_decay : float, default 0.0
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    more : as every function
        ``maximize``, ``grad_scale``, ``gradient_noise``, ``first_element``, ``backend``,
        ``threads``: see `fastopt.functional`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing is written.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p, variance = np.array([1.0, -2.0]), np.zeros(2)
    >>> fastopt.functional.adafactor(p, 2 * p, variance=variance, step=1, lr=0.1)
    >>> p.round(6).tolist()
    [0.841886, -1.841886]
    """
