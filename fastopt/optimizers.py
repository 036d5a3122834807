"""Internal. The optimizer classes, which are public as `fastopt.Adam` and so on."""

from __future__ import annotations

from typing import Any

from .binding.norms import Limits
from .binding.options import ARGUMENTS, EXECUTION, FILES, MATRIX_ARGUMENTS, Arguments, read_call
from .binding.owned import Owned
from .binding.plan import Plan
from .binding.structure import match
from .documentation import class_text
from .evaluation import Evaluated
from .inputs import WithInputs
from .ondemand import OnDemand
from .saving import Saved, write_state


class Optimizer(Saved):
    """The base of all optimizer classes: their common arguments and methods. The classes come from the rule table.

    A step updates parameters and states in place, in one pass over them.

    Parameters
    ----------
    params : array, nested sequences and mappings of arrays, or list of group dicts
        Arrays of NumPy, torch, CuPy or Numba, or with DLPack, ``__cuda_array_interface__`` or the buffer protocol, of
        one device; float32, float64, bfloat16 (``ml_dtypes`` or torch) or float16. The arrays themselves are held,
        and updated in place: write new values into them, as ``params['W'][...] = x``; another array in their place, as
        by ``params['W'] = x``, is none of this optimizer's. A group is a mapping with ``"params"`` and the
        hyper-parameters of its own; entries under names of your own, as ``name``, are kept. A group of mappings and
        sequences within each other has the paths of its arrays, as "layers.0.weight", as its entry ``param_names``.
    hyper-parameters : float, bool, or callable of the 1-based step
        Those of the class, all but ``lr`` by keyword. Numbers may be arrays or tensors of one element. A callable is
        a schedule: it is called at each step, and gives the value for that step; see `fastopt.schedules`.
    weight_decay : float or callable, default 0.0
        L2 penalty: added to the gradient, times the parameter. A finite number >= 0.
    decoupled_weight_decay : float or callable, default 0.0
        Decay of the parameter itself, times lr, before the update. A finite number >= 0.
    maximize : bool, default False
        Ascend instead of descend: the gradient's sign is flipped.
    state_dtype : str or dtype, optional
        The storage of states: "float32", "bfloat16", "float16", or "8bit", blocks of 256 8-bit floats with a
        float32 scale each (parameters of fewer than 4096 elements, or with gaps between their elements, have float32
        states then); by default each parameter's own dtype, as in torch, but of a float16 one float32, for float16 has
        no second moments below 6e-8 or above 65504. Where it is given, 16-bit states are rounded up or down in turns,
        as 8-bit ones always are, so that slow averages move; by default to nearest, and then a second moment with
        beta2 = 0.999 in bfloat16 never falls. A group may have its own: parameters that are updated by rows need one
        that is not in blocks.
    rounding : str, default "nearest"
        The rounding of updated bfloat16 and float16 parameters: "nearest" drops the bits that they cannot hold;
        "stochastic" rounds up or down at random, in proportion; "kahan" keeps those bits in the state ``compensation``,
        of the parameter's dtype; "master" keeps the parameter in float32, as the state ``master``, of which it is a
        rounded copy. Other parameters are updated as ever.
    seed : int, default 0
        The seed of stochastic rounding, which draws from Philox4x32-7 by seed, step and number of the element, and so
        rounds alike on every backend, with any number of threads.
    first_element : int, default 0
        The number of the first parameter's first element; the others' follow, parameter by parameter. For one who
        holds a part of something larger, whose elements are then rounded, and have noise, as in the whole (8-bit
        states, if it is cut at multiples of 256).
    ema_decay : float, optional
        A number in [0, 1] keeps the state ``ema``, an exponential moving average of the parameter that begins at it:
        ema = ema_decay*ema + (1 - ema_decay)*p, of the updated p before it is rounded to its dtype.
    gradient_noise : GradientNoise, optional
        Normal noise that is added to the gradient, within the pass: after ``grad_scale`` and clipping, before weight
        decay.
    backend : str, optional
        "native", "numba" or "numba-cuda"; by default what `use_backend` chose, else by the arrays: on a CUDA device
        "numba-cuda", on the CPU "native" where it is built.
    threads : int, optional
        At most so many threads; by default `fastopt.get_num_threads`. Not for a CUDA device.
    state_dir : path, optional
        A directory for the states, which are memory maps of a file there, allocated at once. One that is new or empty
        begins anew; one that holds whole states of the same rules, shapes and dtypes is resumed, with their step
        counts; one that a crash left half changed is refused, as is that of another optimizer. Parameters are not kept
        there: save them yourself, and construct the optimizer with those that go with the states; a warning tells after
        which step these are. After each step the directory is whole if the process is killed; `sync` makes it so for a
        power failure too.
    state_memory : int, optional
        At most so many bytes of the states in ``state_dir``, and of parameters and gradients that are memory maps, are
        in memory: a step streams them, reading ahead and writing behind while it computes. By default the system
        decides.

    Attributes
    ----------
    param_groups : sequence of ParamGroup
        Parameters with their hyper-parameters: ``opt.param_groups[0]["lr"] = x`` holds from the next step.
    state : sequence of State
        For each parameter its state arrays, under torch's names.
    last_grad_norm : float or None
        The global norm of the gradients at the last step that clipped, before clipping.
    last_step_skipped : bool
        True if the last step did nothing, because a gradient was not finite: see ``step(skip_nonfinite=True)``.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message names it, and nothing has been written.
    BackendUnavailable
        The backend asked for, or one for the arrays' device, is not here.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> params = {"w": np.ones((2, 2)), "b": np.zeros(2)}
    >>> opt = fastopt.Adam(params, lr=lambda t: 0.1 / t)
    >>> opt.step({"w": 2 * params["w"], "b": None}, max_norm=1.0)
    >>> params["w"].round(6).tolist(), opt.last_grad_norm
    ([[0.9, 0.9], [0.9, 0.9]], 4.0)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        call = read_call(type(self), args, kwargs)
        self._execution = call.execution
        self._held = Owned(type(self), self._arguments, call, write_state)

    @property
    def last_grad_norm(self) -> float | None:
        """The global norm of the gradients at the last step that clipped, before clipping."""
        return self._held.last_grad_norm

    @property
    def last_step_skipped(self) -> bool:
        """True if the last step did nothing, because a gradient was not finite."""
        return self._owned.last_step_skipped

    def bind(self, grads: Any) -> Plan:
        """Checks gradients once, for any number of steps from the same arrays.

        Parameters
        ----------
        grads : array, nested sequences and mappings, or list of groups
            The same structure as ``params``; ``None`` skips that parameter, or all of a nested part.

        Returns
        -------
        Plan
            ``plan.step()`` does a step with what the arrays then hold. It keeps them alive.

        Raises
        ------
        TypeError, ValueError
            The structure, a shape, a dtype is not the parameters', or arrays overlap.
        BackendUnavailable
            The backend asked for, or one for the arrays' device, is not here.
        """
        return Plan(self._owned, self._owned.bind(tuple(match(grads, self._owned.structure, "grads"))))

    def accumulate(self, grads: Any) -> None:
        """Adds gradients to those that the next ``step()`` uses, as those of several batches.

        Of each parameter ``sum = g1``, then ``sum = sum + g2`` and so on: in float32 (float64 of float64 parameters),
        each sum rounded to the nearest, in the order of the calls. Rows of a `RowSparse` are put behind those that are
        there, and summed row by row in that order. Each call reads the gradients and adds them in one pass; they may be
        written anew after it. The memory of the sums is kept from step to step.

        Parameters
        ----------
        grads : array, nested sequences and mappings, or list of groups
            As for `step`. A parameter that has None each time is skipped.

        Raises
        ------
        TypeError, ValueError
            As `bind`; a parameter has rows at one time and a dense gradient at another; rows are on a CUDA device.
            Nothing has been added.

        Examples
        --------
        >>> import numpy as np, fastopt
        >>> p = np.zeros(2)
        >>> opt = fastopt.SGD(p, lr=1.0)
        >>> for batch in (np.array([1.0, 2.0]), np.array([3.0, 4.0])):
        ...     opt.accumulate(batch)
        >>> opt.step(grad_scale=1 / 2)  # the mean of both
        >>> p.tolist()
        [-2.0, -3.0]
        """
        owned = self._owned
        owned.accumulate(match(grads, owned.structure, "grads"))

    def step(
        self,
        grads: Any = ...,
        grad_scale: float = 1.0,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        zero_grads: bool = False,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        """Updates every parameter and its states, in place, in one pass.

        Parameters
        ----------
        grads : array, nested sequences and mappings, or list of groups
            The same structure as ``params``; ``None`` skips that parameter, or all of a nested part, whose states and
            step counts stay; with a `RowSparse` some rows are updated. Left out, the gradients that `accumulate` added.
        grad_scale : float
            A factor of the gradients, within the pass; default 1.
        max_norm : float, optional
            Clips the gradients (after `grad_scale`) to this global norm, within the pass; see ``last_grad_norm``.
        skip_nonfinite : bool
            Does nothing where a gradient is not finite before it is clipped, which a reading pass finds out first; see
            ``last_step_skipped``. (Nor where one's square is beyond float64.)
        zero_grads : bool
            Sets the gradients to zero, within the pass; they may not share memory then. (Of many small arrays, `bind`
            saves that check.)
        clip_norm : float, optional
            In place of `max_norm`: clips each parameter's gradient to this norm, as Keras's ``clipnorm``.
        clip_value : float, optional
            Clips each element to [-clip_value, clip_value], after `grad_scale` and the norms, before noise and decay.
            NaN stays.

        Raises
        ------
        TypeError, ValueError
            As `bind`, before any byte is written.
        BackendUnavailable
            The backend asked for, or one for the arrays' device, is not here.
        """
        owned = self._owned
        limits = None if max_norm is clip_norm is clip_value is None else Limits.of(max_norm, clip_norm, clip_value)
        if grads is ... or owned.sums.pending:
            owned.step_accumulated(grads is not ..., grad_scale, limits, skip_nonfinite, zero_grads)
            return
        arrays = tuple(match(grads, owned.structure, "grads"))
        owned.step(arrays, grad_scale, limits, skip_nonfinite, zero_grads)

    def _move(self, train: bool) -> None:
        self._owned.move(train)

    def __repr__(self) -> str:
        groups = [
            ", ".join(f"{key}={value!r}" for key, value in group.items() if key != "params")
            for group in self.param_groups
        ]
        return f"{type(self).__name__}({len(self.state)} parameters; {'; '.join(groups)})"


# ---- the classes, from the rule table ----


def _define(arguments: Arguments) -> type:
    execution = {key: default for key, (default, _) in {**EXECUTION, **FILES}.items()}
    namespace = {
        "__doc__": class_text(arguments, execution),
        "__module__": "fastopt",
        "__signature__": arguments.signature(execution),
        "_arguments": arguments,
    }
    before = (WithInputs,) if arguments.inputs else ()
    after = (Evaluated,) if arguments.evaluated else ()
    return type(arguments.name, (*before, Optimizer, *after), namespace)


_ARGUMENTS = {**ARGUMENTS, **MATRIX_ARGUMENTS}
#: Every optimizer class by name, of the table and of whole matrices.
EVERY_CLASS = OnDemand(_ARGUMENTS, lambda name: _define(_ARGUMENTS[name]))
CLASSES = OnDemand(ARGUMENTS, EVERY_CLASS.__getitem__)
MATRIX_CLASSES = OnDemand(MATRIX_ARGUMENTS, EVERY_CLASS.__getitem__)
