"""Optimizer updates at the speed of memory, on any array, with the same bits on every backend.

Public is what ``dir(fastopt)`` lists, and the modules ``distributed``, ``functional``, ``hogwild``, ``numba``,
``schedules``, ``torch``, ``training`` and ``trajectories``, each with what its ``dir()`` lists. The docstrings of all
other modules begin with "Internal": what is in them may change in any version."""

# Written by: python -m fastopt.generate

from os import PathLike
from typing import Literal, SupportsIndex

from ._types import Number, Params, StateDtype, Value, ValuePair, Values
from ._version import __version__ as __version__
from . import functional as functional, schedules as schedules
from .backends.choice import available_backends as available_backends, use_backend as use_backend
from .binding.norms import clip_grad_norm_ as clip_grad_norm_, global_norm as global_norm
from .binding.sparse import RowSparse as RowSparse
from .errors import BackendUnavailable as BackendUnavailable
from .info import get_include as get_include, get_library as get_library, show_config as show_config
from .jobs.noise import GradientNoise as GradientNoise
from .optimizers import Optimizer as Optimizer, Plan as Plan
from .rules import RULES as RULES, Rule as Rule
from .schedules import Demon as Demon
from .settings import get_num_threads as get_num_threads, set_num_threads as set_num_threads
from .statedict import flatten_state_dict as flatten_state_dict, torch_state_dict as torch_state_dict, unflatten_state_dict as unflatten_state_dict

__all__ = ['AMSBound', 'AMSGrad', 'ASGD', 'AdEMAMix', 'AdaBelief', 'AdaBound', 'Adadelta', 'Adafactor', 'Adagrad', 'Adam', 'AdamW', 'Adamax', 'Adan', 'AdaptiveRevision', 'AggMo', 'BackendUnavailable', 'DCASGD', 'Demon', 'FTRL', 'GradientNoise', 'LAMB', 'LARS', 'Lion', 'Momentum', 'Muon', 'NAG', 'NAdam', 'NovoGrad', 'Optimizer', 'Plan', 'Prodigy', 'QHAdam', 'QHM', 'RAdam', 'RMSprop', 'RULES', 'RowSparse', 'RowwiseAdagrad', 'Rprop', 'Rule', 'SGD', 'SWATS', 'ScheduleFreeAdamW', 'ScheduleFreeSGD', 'SignSGD', '__version__', 'available_backends', 'clip_grad_norm_', 'flatten_state_dict', 'functional', 'get_include', 'get_library', 'get_num_threads', 'global_norm', 'schedules', 'set_num_threads', 'show_config', 'torch_state_dict', 'unflatten_state_dict', 'use_backend']

class SGD(Optimizer):
    """Stochastic gradient descent: a step against the gradient.

    ::

        p -= lr*g

    With ``momentum=0.9``: Gradient descent with momentum: a step against a decaying sum of the
    gradients::

        b = momentum*b + (1 - dampening)*g, the first step b = g
        p -= lr*b

    With ``momentum=0.9, nesterov=True``: Nesterov's accelerated gradient: momentum, with the
    gradient at the point ahead::

        b = momentum*b + (1 - dampening)*g, the first step b = g
        p -= lr*(g + momentum*b)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    ``lr_inside=True`` is the form of Ruder's overview and of Keras: b = momentum*b + lr*g; p -= b.

    The parameter array holds the look-ahead point theta - momentum*v of the literal form v =
    momentum*v + lr*grad(theta - momentum*v); theta -= v, at which the gradient is to be taken.

    Source: Robbins and Monro 1951; torch.optim.SGD; Polyak 1964; torch.optim.SGD(momentum=);
    Nesterov 1983, in the form of Sutskever et al. 2013; torch.optim.SGD(nesterov=True).

    Parameters
    ----------
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate. A finite number >= 0.
    momentum : float or callable, default 0.0
        Decay rate of the velocity. A finite number >= 0.
    dampening : float or callable, default 0.0
        The gradient enters the velocity times 1 - dampening, from the second step on.
    lr_inside : bool, default False
        The velocity accumulates lr*g instead of g (differs once lr changes).
    nesterov : bool, default False
        Chooses the rule, as above.
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``momentum_buffer`` with ``momentum=0.9`` or with ``momentum=0.9,
        nesterov=True``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.SGD(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.8, -1.6]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        momentum: Value = 0.0,
        dampening: Value = 0.0,
        lr_inside: bool = False,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        nesterov: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class Momentum(Optimizer):
    """Gradient descent with momentum: a step against a decaying sum of the gradients.

    ::

        b = momentum*b + (1 - dampening)*g, the first step b = g
        p -= lr*b

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    ``lr_inside=True`` is the form of Ruder's overview and of Keras: b = momentum*b + lr*g; p -= b.

    Source: Polyak 1964; torch.optim.SGD(momentum=).

    Parameters
    ----------
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate. A finite number >= 0.
    momentum : float or callable, default 0.9
        Decay rate of the velocity. A finite number >= 0.
    dampening : float or callable, default 0.0
        The gradient enters the velocity times 1 - dampening, from the second step on.
    lr_inside : bool, default False
        The velocity accumulates lr*g instead of g (differs once lr changes).
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``momentum_buffer``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.Momentum(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.8, -1.6]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        momentum: Value = 0.9,
        dampening: Value = 0.0,
        lr_inside: bool = False,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class NAG(Optimizer):
    """Nesterov's accelerated gradient: momentum, with the gradient at the point ahead.

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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate. A finite number >= 0.
    momentum : float or callable, default 0.9
        Decay rate of the velocity. A finite number >= 0.
    dampening : float or callable, default 0.0
        The gradient enters the velocity times 1 - dampening, from the second step on.
    lr_inside : bool, default False
        The velocity accumulates lr*g instead of g (differs once lr changes).
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``momentum_buffer``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.NAG(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.62, -1.24]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        momentum: Value = 0.9,
        dampening: Value = 0.0,
        lr_inside: bool = False,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class QHM(Optimizer):
    """Quasi-hyperbolic momentum: a step against a weighted mean of the gradient and its average.

    ::

        b = momentum*b + (1 - momentum)*g
        p -= lr*(nu*b + (1 - nu)*g)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    Source: Ma and Yarats 2019, arXiv:1810.06801.

    Parameters
    ----------
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable
        Learning rate. A finite number >= 0.
    momentum : float or callable, default 0.999
        Decay rate of the gradient's average (beta in the paper). A number in [0, 1).
    nu : float or callable, default 0.7
        Weight of the average against the gradient. A number in [0, 1].
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``momentum_buffer``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.QHM(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.93986, -1.87972]
    """

    def __init__(
        self,
        params: Params,
        lr: Value,
        *,
        momentum: Value = 0.999,
        nu: Value = 0.7,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class AggMo(Optimizer):
    """Aggregated momentum: a step against the mean of several velocities, each with its own decay
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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate. A finite number >= 0.
    betas : sequence of float or callable, default (0.0, 0.9, 0.99)
        Decay rates of the K velocities. Each a number in [0, 1).
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``momentum_buffer`` (of shape (number of betas, ...)).

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.AggMo(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.8, -1.6]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        betas: Values = (0.0, 0.9, 0.99),
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class Lion(Optimizer):
    """Evolved sign momentum: a step of lr against the sign of a weighted mean of the average and the
    gradient.

    ::

        p -= lr*weight_decay*p
        p -= lr*sign(beta1*m + (1 - beta1)*g)
        m = beta2*m + (1 - beta2)*g

    Here g is grad_scale*grad, its sign flipped by ``maximize``.

    Source: Chen et al. 2023, arXiv:2302.06675.

    Parameters
    ----------
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.0001
        Learning rate. A finite number >= 0.
    betas : pair of float or callable, default (0.9, 0.99)
        Weight of the average against the gradient in a step; decay rate of the gradient's average.
        Each a number in [0, 1).
    weight_decay : float or callable, default 0.0
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    more : as every class, by keyword
        ``maximize``, ``state_dtype``, ``rounding``, ``seed``, ``first_element``, ``ema_decay``,
        ``gradient_noise``, ``backend``, ``threads``, ``state_dir``, ``state_memory``: see
        `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``exp_avg``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.Lion(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.0001,
        *,
        betas: ValuePair = (0.9, 0.99),
        weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class SignSGD(Optimizer):
    """A step of lr against the sign of the gradient's average (Signum).

    ::

        b = momentum*b + (1 - momentum)*g
        p -= lr*sign(b)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    ``momentum=0`` is signSGD, whose step is against the sign of the gradient itself.

    Source: Bernstein et al. 2018, arXiv:1802.04434.

    Parameters
    ----------
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate. A finite number >= 0.
    momentum : float or callable, default 0.9
        Decay rate of the gradient's average. A number in [0, 1).
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``momentum_buffer``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.SignSGD(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        momentum: Value = 0.9,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class ScheduleFreeSGD(Optimizer):
    """SGD without a schedule: iterates z are averaged to x, and gradients are taken in between.

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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 1.0
        Learning rate. A finite number >= 0.
    momentum : float or callable, default 0.9
        Where the gradient is taken: 1 at the average x, 0 at z. A number in [4.94066e-324, 1).
    warmup_steps : float or callable, default 0.0
        Steps over which the learning rate rises from 0. A finite number >= 0.
    weight_step_power : float or callable, default 0.0
        Power of the step's number in its weight (r in the paper). A number in [0, 10].
    weight_lr_power : float or callable, default 2.0
        Power of the largest learning rate so far in a step's weight. A finite number >= 0.
    train_mode : bool, default True
        The parameters are where gradients are taken: what ``train`` and ``eval`` change.
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, ``weight_sum``, ``lr_max``, and arrays: ``z_offset``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.ScheduleFreeSGD(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.8, -1.6]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 1.0,
        *,
        momentum: Value = 0.9,
        warmup_steps: Value = 0.0,
        weight_step_power: Value = 0.0,
        weight_lr_power: Value = 2.0,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        train_mode: bool = True,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

    def eval(
        self,
    ) -> None:
        """Moves the parameters, in place, to where they are to be evaluated, or saved for use: the average x.

        States stay as they are, and ``param_groups`` and state dicts tell it, as ``train_mode``. A step is refused
        until `train` is called; both do nothing where parameters are there already.

        Raises
        ------
        ValueError
            A parameter cannot be written; nothing has been.
        """

    def train(
        self,
    ) -> None:
        """Moves the parameters, in place, to where gradients are taken, up to rounding where they were before `eval`.

        Raises
        ------
        ValueError
            A parameter cannot be written; nothing has been.
        """

class ASGD(Optimizer):
    """Averaged SGD: a step against the gradient at a decaying rate, beside the average of the
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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.01
        Learning rate. A finite number >= 0.
    lambd : float or callable, default 0.0001
        Decay of the parameter, times eta.
    alpha : float or callable, default 0.75
        Power by which the rate eta decays.
    t0 : float or callable, default 1000000.0
        Steps before the average begins.
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, ``eta``, ``mu``, and arrays: ``ax``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.ASGD(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.79999, -1.59998]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.01,
        *,
        lambd: Value = 0.0001,
        alpha: Value = 0.75,
        t0: Value = 1000000.0,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class Rprop(Optimizer):
    """Resilient backpropagation: steps against the gradient's sign, longer while it stays, shorter if
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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.01
        Length of the first step. A finite number >= 0.
    etas : pair of float or callable, default (0.5, 1.2)
        Factor of the step's length where the sign turns; factor where it stays. Each a number in
        [4.94066e-324, 1).
    step_sizes : pair of float or callable, default (1e-06, 50.0)
        The shortest step; the longest step.
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``prev``, ``step_size``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.Rprop(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.01,
        *,
        etas: ValuePair = (0.5, 1.2),
        step_sizes: ValuePair = (1e-06, 50.0),
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class Adagrad(Optimizer):
    """The gradient over the root of the sum of all squared gradients.

    ::

        s += g^2
        p -= lr_t*g/(sqrt(s + eps_root) + eps), lr_t = lr/(1 + (t - 1)*lr_decay)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    Source: Duchi et al. 2011; torch.optim.Adagrad.

    Parameters
    ----------
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.01
        Learning rate. A finite number >= 0.
    lr_decay : float or callable, default 0.0
        Decay of the learning rate with the step. A finite number >= 0.
    initial_accumulator_value : float or callable, default 0.0
        What the sum of squares begins at. A finite number >= 0.
    eps : float or callable, default 1e-10
        Added to the denominator. A finite number >= 0.
    eps_root : float or callable, default 0.0
        Added under the square root. A finite number >= 0.
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``sum``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.Adagrad(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.01,
        *,
        lr_decay: Value = 0.0,
        initial_accumulator_value: Value = 0.0,
        eps: Value = 1e-10,
        eps_root: Value = 0.0,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class RowwiseAdagrad(Optimizer):
    """Adagrad with one sum of squares for each row, for embedding tables.

    ::

        s += mean of g^2 over the row
        p -= lr_t/(sqrt(s + eps_root) + eps)*g, lr_t = lr/(1 + (t - 1)*lr_decay)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    The state has one element for each row of the parameter (its first axis).

    Source: Duchi et al. 2011, by row as FBGEMM's EXACT_ROWWISE_ADAGRAD.

    Parameters
    ----------
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.01
        Learning rate. A finite number >= 0.
    lr_decay : float or callable, default 0.0
        Decay of the learning rate with the step. A finite number >= 0.
    initial_accumulator_value : float or callable, default 0.0
        What the sum of squares begins at. A finite number >= 0.
    eps : float or callable, default 1e-10
        Added to the denominator. A finite number >= 0.
    eps_root : float or callable, default 0.0
        Added under the square root. A finite number >= 0.
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``sum`` (an element a row).

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.RowwiseAdagrad(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.01,
        *,
        lr_decay: Value = 0.0,
        initial_accumulator_value: Value = 0.0,
        eps: Value = 1e-10,
        eps_root: Value = 0.0,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class Adadelta(Optimizer):
    """The gradient times the root of the average squared step over that of the average squared
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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 1.0
        Learning rate. A finite number >= 0.
    rho : float or callable, default 0.9
        Decay rate of both averages. A number in [0, 1].
    eps : float or callable, default 1e-06
        Added under both square roots. A finite number >= 0.
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``square_avg``, ``acc_delta``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.Adadelta(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.999684, -1.999684]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 1.0,
        *,
        rho: Value = 0.9,
        eps: Value = 1e-06,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class RMSprop(Optimizer):
    """The gradient over the root of the average squared gradient.

    ::

        s = alpha*s + (1 - alpha)*g^2
        p -= lr*g/(sqrt(s + eps_root) + eps)

    With ``momentum=0.9``: RMSprop with momentum: a decaying sum of its steps::

        s = alpha*s + (1 - alpha)*g^2
        b = momentum*b + g/(sqrt(s + eps_root) + eps)
        p -= lr*b

    With ``centered=True``: RMSprop with the gradient's variance in place of its mean square::

        as rmsprop, with a = alpha*a + (1 - alpha)*g and max(s - a^2, 0) in place of s

    With ``momentum=0.9, centered=True``: Centered RMSprop with momentum: a decaying sum of its
    steps::

        as rmsprop_momentum, with a = alpha*a + (1 - alpha)*g and max(s - a^2, 0) in place of s

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    ``lr_inside=True`` is the form of Graves, Keras, optax and TensorFlow: b = momentum*b +
    lr*g/(...); p -= b.

    torch does not clamp the variance at 0, and gives NaN where rounding makes it negative.

    Source: Tieleman and Hinton 2012, lecture 6.5; torch.optim.RMSprop;
    torch.optim.RMSprop(momentum=); Graves 2013, arXiv:1308.0850;
    torch.optim.RMSprop(centered=True); torch.optim.RMSprop(centered=True, momentum=).

    Parameters
    ----------
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.01
        Learning rate. A finite number >= 0.
    alpha : float or callable, default 0.99
        Decay rate of the averages. A finite number >= 0.
    initial_square_avg : float or callable, default 0.0
        What the average of squares begins at: 1 in TensorFlow 1. A finite number >= 0.
    eps : float or callable, default 1e-08
        Added to the denominator. A finite number >= 0.
    eps_root : float or callable, default 0.0
        Added under the square root. A finite number >= 0.
    momentum : float or callable, default 0.0
        Decay rate of the velocity. A finite number >= 0.
    lr_inside : bool, default False
        The velocity accumulates steps, lr and all (differs once lr changes).
    centered : bool, default False
        Chooses the rule, as above.
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``square_avg``; ``square_avg``, ``momentum_buffer`` with
        ``momentum=0.9``; ``square_avg``, ``grad_avg`` with ``centered=True``; ``square_avg``,
        ``momentum_buffer``, ``grad_avg`` with ``momentum=0.9, centered=True``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.RMSprop(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.0, -1.0]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.01,
        *,
        alpha: Value = 0.99,
        initial_square_avg: Value = 0.0,
        eps: Value = 1e-08,
        eps_root: Value = 0.0,
        momentum: Value = 0.0,
        lr_inside: bool = False,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        centered: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class FTRL(Optimizer):
    """Follow the regularised leader: Adagrad's rates, and parameters that an L1 penalty makes exactly
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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate (alpha in the paper). A finite number >= 0.
    initial_accumulator_value : float or callable, default 0.0
        What n begins at. A finite number >= 0.
    beta : float or callable, default 1.0
        Added to the square root of n. A finite number >= 0.
    l1 : float or callable, default 0.0
        L1 penalty, which makes parameters exactly 0. A finite number >= 0.
    l2 : float or callable, default 0.0
        L2 penalty, on the parameter that the sums lead to. A finite number >= 0.
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``accumulator``, ``linear``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.FTRL(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.6, -1.52]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        initial_accumulator_value: Value = 0.0,
        beta: Value = 1.0,
        l1: Value = 0.0,
        l2: Value = 0.0,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class Adam(Optimizer):
    """The average gradient over the root of the average squared gradient, both corrected for their
    start at 0.

    ::

        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g^2
        p -= lr*m^/(sqrt(v^ + eps_root) + eps), m^ = m/(1 - beta1^t), v^ = v/(1 - beta2^t)

    With ``amsgrad=True``: Adam with the largest average of squares so far, so that no element's
    rate grows again::

        as adam, with x = max(x, v) in place of v

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    ``eps_hat=True`` is the form at the end of section 2 of Kingma and Ba, which is Keras's: p -=
    lr*sqrt(1 - beta2^t)/(1 - beta1^t)*m/(sqrt(v) + eps).

    As torch: the maximum is over the raw v and then corrected. ``bias_correction=False`` is the
    paper's form, ``max_corrected=True`` optax's.

    Source: Kingma and Ba 2015, arXiv:1412.6980; torch.optim.Adam; Reddi et al. 2018,
    arXiv:1904.09237; torch.optim.Adam(amsgrad=True).

    Parameters
    ----------
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate. A finite number >= 0.
    betas : pair of float or callable, default (0.9, 0.999)
        Decay rate of the gradient's average; decay rate of the squared gradient's average. Each a
        number in [0, 1).
    eps : float or callable, default 1e-08
        Added to the denominator. A finite number >= 0.
    eps_root : float or callable, default 0.0
        Added under the square root. A finite number >= 0.
    bias_correction : bool, default True
        Divide the averages by 1 - beta^t.
    eps_hat : bool, default False
        Divide eps by sqrt(1 - beta2^t), as where it is added to sqrt(v), not to sqrt(v^).
    max_corrected : bool, default False
        Take the maximum over v^, not over v, which is then corrected.
    amsgrad : bool, default False
        Chooses the rule, as above.
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``exp_avg``, ``exp_avg_sq``; ``exp_avg``, ``exp_avg_sq``,
        ``max_exp_avg_sq`` with ``amsgrad=True``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.Adam(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        betas: ValuePair = (0.9, 0.999),
        eps: Value = 1e-08,
        eps_root: Value = 0.0,
        bias_correction: bool = True,
        eps_hat: bool = False,
        max_corrected: bool = False,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        amsgrad: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class AMSGrad(Optimizer):
    """Adam with the largest average of squares so far, so that no element's rate grows again.

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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate. A finite number >= 0.
    betas : pair of float or callable, default (0.9, 0.999)
        Decay rate of the gradient's average; decay rate of the squared gradient's average. Each a
        number in [0, 1).
    eps : float or callable, default 1e-08
        Added to the denominator. A finite number >= 0.
    eps_root : float or callable, default 0.0
        Added under the square root. A finite number >= 0.
    bias_correction : bool, default True
        Divide the averages by 1 - beta^t.
    eps_hat : bool, default False
        Divide eps by sqrt(1 - beta2^t), as where it is added to sqrt(v), not to sqrt(v^).
    max_corrected : bool, default False
        Take the maximum over v^, not over v, which is then corrected.
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``exp_avg``, ``exp_avg_sq``, ``max_exp_avg_sq``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.AMSGrad(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        betas: ValuePair = (0.9, 0.999),
        eps: Value = 1e-08,
        eps_root: Value = 0.0,
        bias_correction: bool = True,
        eps_hat: bool = False,
        max_corrected: bool = False,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class AdamW(Optimizer):
    """Adam with decoupled weight decay: each step shrinks the parameter by lr*weight_decay of itself.

    ::

        p -= lr*weight_decay*p, then as adam

    and adam is::

        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g^2
        p -= lr*m^/(sqrt(v^ + eps_root) + eps), m^ = m/(1 - beta1^t), v^ = v/(1 - beta2^t)

    With ``amsgrad=True``: AMSGrad with decoupled weight decay::

        p -= lr*weight_decay*p, then as amsgrad

    and amsgrad is::

        as adam, with x = max(x, v) in place of v

    Here g is grad_scale*grad, its sign flipped by ``maximize``.

    ``eps_hat=True`` is the form at the end of section 2 of Kingma and Ba, which is Keras's: p -=
    lr*sqrt(1 - beta2^t)/(1 - beta1^t)*m/(sqrt(v) + eps).

    As torch: the maximum is over the raw v and then corrected. ``bias_correction=False`` is the
    paper's form, ``max_corrected=True`` optax's.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; torch.optim.AdamW;
    torch.optim.AdamW(amsgrad=True).

    Parameters
    ----------
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate. A finite number >= 0.
    betas : pair of float or callable, default (0.9, 0.999)
        Decay rate of the gradient's average; decay rate of the squared gradient's average. Each a
        number in [0, 1).
    eps : float or callable, default 1e-08
        Added to the denominator. A finite number >= 0.
    eps_root : float or callable, default 0.0
        Added under the square root. A finite number >= 0.
    bias_correction : bool, default True
        Divide the averages by 1 - beta^t.
    eps_hat : bool, default False
        Divide eps by sqrt(1 - beta2^t), as where it is added to sqrt(v), not to sqrt(v^).
    max_corrected : bool, default False
        Take the maximum over v^, not over v, which is then corrected.
    weight_decay : float or callable, default 0.01
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    amsgrad : bool, default False
        Chooses the rule, as above.
    more : as every class, by keyword
        ``maximize``, ``state_dtype``, ``rounding``, ``seed``, ``first_element``, ``ema_decay``,
        ``gradient_noise``, ``backend``, ``threads``, ``state_dir``, ``state_memory``: see
        `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``exp_avg``, ``exp_avg_sq``; ``exp_avg``, ``exp_avg_sq``,
        ``max_exp_avg_sq`` with ``amsgrad=True``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.AdamW(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.899, -1.898]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        betas: ValuePair = (0.9, 0.999),
        eps: Value = 1e-08,
        eps_root: Value = 0.0,
        bias_correction: bool = True,
        eps_hat: bool = False,
        max_corrected: bool = False,
        weight_decay: Value = 0.01,
        maximize: bool = False,
        amsgrad: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class Adamax(Optimizer):
    """Adam with a decaying maximum of the gradient's magnitude in place of the root of the average
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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.002
        Learning rate. A finite number >= 0.
    betas : pair of float or callable, default (0.9, 0.999)
        Decay rate of the gradient's average; decay rate of the squared gradient's average. Each a
        number in [0, 1).
    eps : float or callable, default 1e-08
        Added to |g| in the maximum. A finite number >= 0.
    eps_outside : bool, default False
        Add eps to the maximum instead.
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``exp_avg``, ``exp_inf``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.Adamax(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.002,
        *,
        betas: ValuePair = (0.9, 0.999),
        eps: Value = 1e-08,
        eps_outside: bool = False,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class NAdam(Optimizer):
    """Adam with Nesterov's momentum, under a schedule of its own.

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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.002
        Learning rate. A finite number >= 0.
    betas : pair of float or callable, default (0.9, 0.999)
        Decay rate of the gradient's average; decay rate of the squared gradient's average. Each a
        number in [0, 1).
    eps : float or callable, default 1e-08
        Added to the denominator. A finite number >= 0.
    momentum_decay : float or callable or None, default 0.004
        Psi; infinity: a constant momentum, beta1; None: the same in Ruder's form. A finite number
        >= 0, infinity.
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, ``mu_product``, and arrays: ``exp_avg``, ``exp_avg_sq``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.NAdam(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.894355, -1.894355]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.002,
        *,
        betas: ValuePair = (0.9, 0.999),
        eps: Value = 1e-08,
        momentum_decay: Value | None = 0.004,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class QHAdam(Optimizer):
    """Quasi-hyperbolic Adam: weighted means of the gradient and its average, and of their squares.

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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate. A finite number >= 0.
    betas : pair of float or callable, default (0.9, 0.999)
        Decay rate of the gradient's average; decay rate of the squared gradient's average. Each a
        number in [0, 1).
    eps : float or callable, default 1e-08
        Added to the denominator. A finite number >= 0.
    nus : pair of float or callable, default (1.0, 1.0)
        Weight of the average against the gradient; weight of the average against the squared
        gradient. Each a number in [0, 1].
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``exp_avg``, ``exp_avg_sq``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.QHAdam(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        betas: ValuePair = (0.9, 0.999),
        eps: Value = 1e-08,
        nus: ValuePair = (1.0, 1.0),
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class AdaBound(Optimizer):
    """Adam whose rates are clamped between bounds that close in on the rate of an SGD.

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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate. A finite number >= 0.
    betas : pair of float or callable, default (0.9, 0.999)
        Decay rate of the gradient's average; decay rate of the squared gradient's average. Each a
        number in [0, 1).
    eps : float or callable, default 1e-08
        Added to the denominator. A finite number >= 0.
    final_lr : float or callable, default 0.1
        The learning rate of the SGD that the rule goes over into. A finite number >= 0.
    gamma : float or callable, default 0.001
        How fast the bounds close. A finite number > 0.
    base_lr : float or callable or None, default None
        The lr that final_lr belongs to; None: lr itself. A finite number > 0.
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``exp_avg``, ``exp_avg_sq``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.AdaBound(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        betas: ValuePair = (0.9, 0.999),
        eps: Value = 1e-08,
        final_lr: Value = 0.1,
        gamma: Value = 0.001,
        base_lr: Value | None = None,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class AMSBound(Optimizer):
    """AdaBound with the largest average of squares so far.

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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate. A finite number >= 0.
    betas : pair of float or callable, default (0.9, 0.999)
        Decay rate of the gradient's average; decay rate of the squared gradient's average. Each a
        number in [0, 1).
    eps : float or callable, default 1e-08
        Added to the denominator. A finite number >= 0.
    final_lr : float or callable, default 0.1
        The learning rate of the SGD that the rule goes over into. A finite number >= 0.
    gamma : float or callable, default 0.001
        How fast the bounds close. A finite number > 0.
    base_lr : float or callable or None, default None
        The lr that final_lr belongs to; None: lr itself. A finite number > 0.
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``exp_avg``, ``exp_avg_sq``, ``max_exp_avg_sq``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.AMSBound(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        betas: ValuePair = (0.9, 0.999),
        eps: Value = 1e-08,
        final_lr: Value = 0.1,
        gamma: Value = 0.001,
        base_lr: Value | None = None,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class AdaBelief(Optimizer):
    """Adam with the average square of the gradient's distance from its average in place of its own.

    ::

        m = beta1*m + (1 - beta1)*g
        s = beta2*s + (1 - beta2)*(g - m)^2 + eps_root
        p -= lr*m^/(sqrt(s^) + eps), m^ = m/(1 - beta1^t), s^ = s/(1 - beta2^t)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    Source: Zhuang et al. 2020, arXiv:2010.07468.

    Parameters
    ----------
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate. A finite number >= 0.
    betas : pair of float or callable, default (0.9, 0.999)
        Decay rate of the gradient's average; decay rate of the squared gradient's average. Each a
        number in [0, 1).
    eps : float or callable, default 1e-16
        Added to the denominator. A finite number >= 0.
    eps_root : float or callable, default 1e-16
        Added to the average of squares at each step. A finite number >= 0.
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``exp_avg``, ``exp_avg_var``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.AdaBelief(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.888889, -1.888889]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        betas: ValuePair = (0.9, 0.999),
        eps: Value = 1e-16,
        eps_root: Value = 1e-16,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class RAdam(Optimizer):
    """Adam with a rate that is rectified for the variance of young averages of squares; before,
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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate. A finite number >= 0.
    betas : pair of float or callable, default (0.9, 0.999)
        Decay rate of the gradient's average; decay rate of the squared gradient's average. Each a
        number in [0, 1).
    eps : float or callable, default 1e-08
        Added to the denominator. A finite number >= 0.
    eps_hat : bool, default True
        Add eps to sqrt(v), as torch; else to sqrt(v^).
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``exp_avg``, ``exp_avg_sq``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.RAdam(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.8, -1.6]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        betas: ValuePair = (0.9, 0.999),
        eps: Value = 1e-08,
        eps_hat: bool = True,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class Adan(Optimizer):
    """Adam with Nesterov's momentum from averages of the gradient and of its change.

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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate. A finite number >= 0.
    betas : tuple of float or callable, default (0.98, 0.92, 0.99)
        Decay rate of the gradient's average; decay rate of the average of its change; decay rate of
        the average of squares. Each a number in [0, 1).
    eps : float or callable, default 1e-08
        Added to the denominator. A finite number >= 0.
    eps_root : float or callable, default 0.0
        Added under the square root. A finite number >= 0.
    difference_weight : float or callable or None, default None
        Weight of the gradient's change in a step; None: beta2. A finite number >= 0.
    proximal_weight_decay : float or callable, default 0.0
        The parameter is divided by 1 + lr times it, after the update. A finite number >= 0.
    weight_decay : float or callable, default 0.0
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    more : as every class, by keyword
        ``maximize``, ``state_dtype``, ``rounding``, ``seed``, ``first_element``, ``ema_decay``,
        ``gradient_noise``, ``backend``, ``threads``, ``state_dir``, ``state_memory``: see
        `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``exp_avg``, ``exp_avg_diff``, ``exp_avg_sq``, ``neg_pre_grad``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.Adan(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        betas: Values = (0.98, 0.92, 0.99),
        eps: Value = 1e-08,
        eps_root: Value = 0.0,
        difference_weight: Value | None = None,
        proximal_weight_decay: Value = 0.0,
        weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class AdEMAMix(Optimizer):
    """Adam with a second, slow average of the gradient.

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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate. A finite number >= 0.
    betas : tuple of float or callable, default (0.9, 0.999, 0.9999)
        Decay rate of the gradient's fast average; decay rate of the squared gradient's average;
        decay rate of the gradient's slow average. Each a number in [0, 1).
    alpha : float or callable, default 5.0
        Weight of the slow average. A finite number >= 0.
    warmup : float or callable or None, default None
        Steps over which alpha grows from 0, and the half-life of the slow average from the fast
        one's; None: none. A finite number > 0.
    eps : float or callable, default 1e-08
        Added to the denominator. A finite number >= 0.
    eps_root : float or callable, default 0.0
        Added under the square root. A finite number >= 0.
    weight_decay : float or callable, default 0.0
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    more : as every class, by keyword
        ``maximize``, ``state_dtype``, ``rounding``, ``seed``, ``first_element``, ``ema_decay``,
        ``gradient_noise``, ``backend``, ``threads``, ``state_dir``, ``state_memory``: see
        `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``exp_avg``, ``exp_avg_slow``, ``exp_avg_sq``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.AdEMAMix(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.89995, -1.89995]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        betas: Values = (0.9, 0.999, 0.9999),
        alpha: Value = 5.0,
        warmup: Value | None = None,
        eps: Value = 1e-08,
        eps_root: Value = 0.0,
        weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class ScheduleFreeAdamW(Optimizer):
    """AdamW without a schedule: iterates z are averaged to x, and gradients are taken in between.

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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.0025
        Learning rate. A finite number >= 0.
    betas : pair of float or callable, default (0.9, 0.999)
        Where the gradient is taken: 1 at the average x, 0 at z; decay rate of the squared
        gradient's average. Each a number in [4.94066e-324, 1).
    eps : float or callable, default 1e-08
        Added to the denominator. A finite number >= 0.
    warmup_steps : float or callable, default 0.0
        Steps over which the learning rate rises from 0. A finite number >= 0.
    weight_step_power : float or callable, default 0.0
        Power of the step's number in its weight (r in the paper). A number in [0, 10].
    weight_lr_power : float or callable, default 2.0
        Power of the largest learning rate so far in a step's weight. A finite number >= 0.
    weight_decay : float or callable, default 0.0
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    train_mode : bool, default True
        The parameters are where gradients are taken: what ``train`` and ``eval`` change.
    more : as every class, by keyword
        ``maximize``, ``state_dtype``, ``rounding``, ``seed``, ``first_element``, ``ema_decay``,
        ``gradient_noise``, ``backend``, ``threads``, ``state_dir``, ``state_memory``: see
        `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, ``weight_sum``, ``lr_max``, and arrays: ``z_offset``, ``exp_avg_sq``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.ScheduleFreeAdamW(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.0025,
        *,
        betas: ValuePair = (0.9, 0.999),
        eps: Value = 1e-08,
        warmup_steps: Value = 0.0,
        weight_step_power: Value = 0.0,
        weight_lr_power: Value = 2.0,
        weight_decay: Value = 0.0,
        maximize: bool = False,
        train_mode: bool = True,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

    def eval(
        self,
    ) -> None:
        """Moves the parameters, in place, to where they are to be evaluated, or saved for use: the average x.

        States stay as they are, and ``param_groups`` and state dicts tell it, as ``train_mode``. A step is refused
        until `train` is called; both do nothing where parameters are there already.

        Raises
        ------
        ValueError
            A parameter cannot be written; nothing has been.
        """

    def train(
        self,
    ) -> None:
        """Moves the parameters, in place, to where gradients are taken, up to rounding where they were before `eval`.

        Raises
        ------
        ValueError
            A parameter cannot be written; nothing has been.
        """

class LARS(Optimizer):
    """Momentum with a rate for each tensor: the parameter's norm over the gradient's.

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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 1.0
        Learning rate. A finite number >= 0.
    momentum : float or callable, default 0.9
        Decay rate of the velocity. A number in [0, 1).
    trust_coefficient : float or callable, default 0.001
        The length of a step beside the parameter's norm, at lr 1. A finite number >= 0.
    eps : float or callable, default 0.0
        Added to the denominator. A finite number >= 0.
    lr_inside : bool, default False
        The velocity accumulates steps, lr and all (differs once lr changes).
    decay_inside : bool, default False
        Norm(g + weight_decay*p) is below, in place of the two norms.
    weight_decay : float or callable, default 0.0
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    more : as every class, by keyword
        ``maximize``, ``state_dtype``, ``rounding``, ``seed``, ``first_element``, ``ema_decay``,
        ``gradient_noise``, ``backend``, ``threads``, ``state_dir``, ``state_memory``: see
        `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``momentum_buffer``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.LARS(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.9999, -1.9998]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 1.0,
        *,
        momentum: Value = 0.9,
        trust_coefficient: Value = 0.001,
        eps: Value = 0.0,
        lr_inside: bool = False,
        decay_inside: bool = False,
        weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class LAMB(Optimizer):
    """Adam with a rate for each tensor: the parameter's norm over the step's.

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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate. A finite number >= 0.
    betas : pair of float or callable, default (0.9, 0.999)
        Decay rate of the gradient's average; decay rate of the squared gradient's average. Each a
        number in [0, 1).
    eps : float or callable, default 1e-06
        Added to the denominator. A finite number >= 0.
    eps_root : float or callable, default 0.0
        Added under the square root. A finite number >= 0.
    weight_decay : float or callable, default 0.0
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    more : as every class, by keyword
        ``maximize``, ``state_dtype``, ``rounding``, ``seed``, ``first_element``, ``ema_decay``,
        ``gradient_noise``, ``backend``, ``threads``, ``state_dir``, ``state_memory``: see
        `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``exp_avg``, ``exp_avg_sq``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.LAMB(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.841886, -1.841886]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        betas: ValuePair = (0.9, 0.999),
        eps: Value = 1e-06,
        eps_root: Value = 0.0,
        weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class NovoGrad(Optimizer):
    """Momentum with gradients over an average of their norms, one number for each tensor.

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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate. A finite number >= 0.
    betas : pair of float or callable, default (0.95, 0.98)
        Decay rate of the velocity; decay rate of the squared norm's average. Each a number in [0,
        1).
    eps : float or callable, default 1e-08
        Added to the denominator. A finite number >= 0.
    eps_root : float or callable, default 0.0
        Added under the square root. A finite number >= 0.
    grad_averaging : bool, default False
        The velocity is an average: what is added to it is times 1 - beta1.
    weight_decay : float or callable, default 0.0
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    more : as every class, by keyword
        ``maximize``, ``state_dtype``, ``rounding``, ``seed``, ``first_element``, ``ema_decay``,
        ``gradient_noise``, ``backend``, ``threads``, ``state_dir``, ``state_memory``: see
        `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``exp_avg``, ``exp_avg_sq`` (exp_avg_sq of shape ``()``).

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.NovoGrad(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.955279, -1.910557]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        betas: ValuePair = (0.95, 0.98),
        eps: Value = 1e-08,
        eps_root: Value = 0.0,
        grad_averaging: bool = False,
        weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class SWATS(Optimizer):
    """Adam until a tensor's steps settle on the length that SGD's would have, then SGD with momentum.

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

    With ``over='all'``: SWATS with one rate for all tensors, which change over together::

        as swats, with the sums of all tensors

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    ``over='all'`` is the paper's: the sums are of all tensors, which change over together.
    ``phase`` is 1 from then on, and ``exp_avg``, from zero, the velocity.

    The norms are of whole tensors, summed in float64. An element that is not finite makes all of
    its tensor so. Gradients of some rows and 'state_memory' are refused.

    Source: Keskar and Socher 2017, arXiv:1712.07628.

    Parameters
    ----------
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate of Adam. A finite number >= 0.
    betas : pair of float or callable, default (0.9, 0.999)
        Decay rate of the gradient's average, and then of the velocity; decay rate of the other
        averages, the rate's too. Each a number in [0, 1).
    eps : float or callable, default 1e-09
        Added to the denominator; how near the rate comes to its average. A finite number >= 0.
    over : str, default 'tensor'
        What changes over by itself: each tensor, or all together. One of tensor, all.
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``exp_avg``, ``exp_avg_sq``, ``exp_avg2``, ``phase``, ``rate``
        (exp_avg2, phase, rate of shape ``()``) or with ``over='all'``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.SWATS(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.9, -1.9]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        betas: ValuePair = (0.9, 0.999),
        eps: Value = 1e-09,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        over: Literal['tensor', 'all'] = 'tensor',
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class Prodigy(Optimizer):
    """Adam that finds its own learning rate, by how far parameters have come from where they began.

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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 1.0
        A factor of the learning rate that is found. A finite number >= 0.
    betas : pair of float or callable, default (0.9, 0.999)
        Decay rate of the gradient's average; decay rate of the squared gradient's average. Each a
        number in [0, 1).
    beta3 : float or callable or None, default None
        Decay rate of the sums, by default sqrt(beta2). A number in [0, 1).
    eps : float or callable, default 1e-08
        Added to the denominator, times d. A finite number > 0.
    decouple : bool, default True
        ``weight_decay`` is of the parameter itself, else L2.
    use_bias_correction : bool, default False
        The rate is times sqrt(1 - beta2^t)/(1 - beta1^t).
    safeguard_warmup : bool, default False
        What the estimate is over is without lr, which may be small at first.
    d0 : float or callable, default 1e-06
        The estimate d before the first step. A finite number > 0.
    d_coef : float or callable, default 1.0
        A factor of the estimate. A finite number > 0.
    growth_rate : float or callable or None, default None
        The estimate is at most so many times the last one, but for d0. A finite number > 0,
        infinity.
    weight_decay : float or callable, default 0.0
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    more : as every class, by keyword
        ``maximize``, ``state_dtype``, ``rounding``, ``seed``, ``first_element``, ``ema_decay``,
        ``gradient_noise``, ``backend``, ``threads``, ``state_dir``, ``state_memory``: see
        `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``exp_avg``, ``exp_avg_sq``, ``s``, ``p0``, ``d``, ``d_max``,
        ``d_numerator`` (d, d_max, d_numerator of shape ``()``).

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.Prodigy(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [1.0, -2.0]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 1.0,
        *,
        betas: ValuePair = (0.9, 0.999),
        beta3: Value | None = None,
        eps: Value = 1e-08,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: Value = 1e-06,
        d_coef: Value = 1.0,
        growth_rate: Value | None = None,
        weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class AdaptiveRevision(Optimizer):
    """Adagrad for gradients that come late: the rates of those applied meanwhile are revised.

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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.01
        Learning rate. A finite number >= 0.
    initial_accumulator_value : float or callable, default 1.0
        What z and its maximum begin at. A finite number > 0.
    read : bool, default True
        The gradient's worker reads the parameter after this step.
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``grad_sum``, ``z``, ``z_max``, ``snapshot``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.AdaptiveRevision(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.910557, -1.902986]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.01,
        *,
        initial_accumulator_value: Value = 1.0,
        read: bool = True,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class DCASGD(Optimizer):
    """SGD for gradients that come late, each corrected by its square to where the parameter is now.

    ::

        g' = g + lambd*g^2*(p - b)
        p -= lr*g'
        b = p

    With ``adaptive=True``: DC-ASGD whose factor is smaller where gradients are larger::

        s = alpha*s + (1 - alpha)*g^2
        as dc_asgd with lambd = lambd0/sqrt(s + eps_root)

    Here g is grad_scale*grad, its sign flipped by ``maximize``, + weight_decay*p; then p *= 1 -
    lr*decoupled_weight_decay; then comes the above.

    b is the ``backup``: the parameter as the gradient's worker read it, and each worker has one of
    its own. With one worker, which reads after each step, b is p, and the steps are those of
    ``SGD`` (of a parameter that no ``decoupled_weight_decay`` moves). ``read=False`` leaves the
    backup as it is. It is stored as the parameter is, or its master.

    Source: Zheng et al. 2017, arXiv:1609.08326.

    Parameters
    ----------
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate. A finite number >= 0.
    lambd : float or callable, default 0.04
        Factor of the compensation. A finite number >= 0.
    read : bool, default True
        The gradient's worker reads the parameter after this step.
    lambd0 : float or callable, default 2.0
        Factor of the compensation, over the root of the average squared gradient. A finite number
        >= 0.
    alpha : float or callable, default 0.95
        Decay rate of the average of squares. A number in [0, 1).
    eps_root : float or callable, default 1e-07
        Added under the square root. A finite number > 0.
    adaptive : bool, default False
        Chooses the rule, as above.
    more : as every class, by keyword
        ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``state_dtype``, ``rounding``,
        ``seed``, ``first_element``, ``ema_decay``, ``gradient_noise``, ``backend``, ``threads``,
        ``state_dir``, ``state_memory``: see `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``backup``; ``square_avg``, ``backup`` with ``adaptive=True``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.DCASGD(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.8, -1.6]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        lambd: Value = 0.04,
        read: bool = True,
        lambd0: Value = 2.0,
        alpha: Value = 0.95,
        eps_root: Value = 1e-07,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: Value = 0.0,
        maximize: bool = False,
        adaptive: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class Muon(Optimizer):
    """Momentum, orthogonalized: a step against the nearest matrix whose singular values are all about
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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.001
        Learning rate. A finite number >= 0.
    momentum : float or callable, default 0.95
        Decay rate of the gradient's average. A finite number >= 0.
    nesterov : bool, default True
        The direction is the average's once more averaged with the gradient.
    ns_coefficients : tuple of float or callable, default (3.4445, -4.775, 2.0315)
        Coefficients of the polynomial.
    eps : float or callable, default 1e-07
        The least that the direction is divided by. A finite number >= 0.
    ns_steps : int or callable, default 5
        Times that the polynomial is applied. An integer >= 0 and <= 99.
    adjust_lr_fn : str or None, default None
        The factor of lr: sqrt(max(1, rows/columns)), which None is too, or 0.2*sqrt(max(rows,
        columns)). One of original, match_rms_adamw.
    weight_decay : float or callable, default 0.1
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    more : as every class, by keyword
        ``maximize``, ``state_dtype``, ``rounding``, ``seed``, ``first_element``, ``ema_decay``,
        ``gradient_noise``, ``backend``, ``threads``, ``state_dir``, ``state_memory``: see
        `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``momentum_buffer``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([[1.0, -2.0]])
    >>> opt = fastopt.Muon(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(1).tolist()
    [[1.0, -1.9]]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.001,
        *,
        momentum: Value = 0.95,
        nesterov: bool = True,
        ns_coefficients: Values = (3.4445, -4.775, 2.0315),
        eps: Value = 1e-07,
        ns_steps: Value = 5,
        adjust_lr_fn: Literal['original', 'match_rms_adamw'] | None = None,
        weight_decay: Value = 0.1,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...

class Adafactor(Optimizer):
    """RMSprop with averages over rows and columns in place of an average for each element, and clipped
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
    params : array, nested sequences and mappings, or list of group dicts
        Arrays that are updated in place.
    lr : float or callable, default 0.01
        Learning rate, and the most that the relative one is. A finite number >= 0.
    beta2_decay : float or callable, default -0.8
        Exponent of the step, which is a new square's weight. A finite number <= 0.
    eps : pair of float or callable or None, default (None, 0.001)
        What a gradient is divided by at least, None for the eps of the parameter's dtype; the size
        that a parameter has at least. Each a finite number >= 0.
    d : float or callable, default 1.0
        The root mean square that updates are clipped to. A finite number >= 1, infinity.
    relative_step : bool, default True
        The rate is at most 1/sqrt(t).
    scale_parameter : bool, default True
        Steps are times the root mean square of the parameter, at least eps[1].
    weight_decay : float or callable, default 0.0
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    more : as every class, by keyword
        ``maximize``, ``state_dtype``, ``rounding``, ``seed``, ``first_element``, ``ema_decay``,
        ``gradient_noise``, ``backend``, ``threads``, ``state_dir``, ``state_memory``: see
        `fastopt.Optimizer`, which has the methods too.

    Attributes
    ----------
    state : sequence of mappings, one for each parameter
        ``step``, and arrays: ``row_var``, ``col_var``, ``variance`` (variance of one dimension or
        none; of more row_var and col_var, of size 1 in the last, the last but one).

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = np.array([1.0, -2.0])
    >>> opt = fastopt.Adafactor(p, lr=0.1)
    >>> opt.step(2 * p)  # the gradient of the sum of p**2
    >>> p.round(6).tolist()
    [0.841886, -1.841886]
    """

    def __init__(
        self,
        params: Params,
        lr: Value = 0.01,
        *,
        beta2_decay: Value = -0.8,
        eps: tuple[Value | None, Value] = (None, 0.001),
        d: Value = 1.0,
        relative_step: bool = True,
        scale_parameter: bool = True,
        weight_decay: Value = 0.0,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Literal["nearest", "stochastic", "kahan", "master"] = 'nearest',
        seed: SupportsIndex = 0,
        first_element: SupportsIndex = 0,
        ema_decay: Number | None = None,
        gradient_noise: GradientNoise | None = None,
        backend: str | None = None,
        threads: SupportsIndex | None = None,
        state_dir: str | PathLike[str] | None = None,
        state_memory: SupportsIndex | None = None,
    ) -> None: ...
