# SPDX-License-Identifier: Apache-2.0
"""The loop around every rule: hyper-parameters at step t, the gradient's prologue, the decay of the parameter."""

import functools
import inspect

import numpy as np

# Rule name -> run(p0, grads, *, dtype, grad_scale, maximize, weight_decay, decoupled_weight_decay, **hyper).
ORACLES = {}


def oracle(**state_names):
    """Turn the formulas of one step into an entry of `ORACLES`.

    The decorated function takes (t, g, *carried, *, lr, **hyper), all at step t, and returns what is to be subtracted
    from the parameter (which it is given as `p`, decayed, and where it began as `p0`, if it asks for them), followed by
    the new carried values. These start at zero; those in `state_names` (the paper's letter = torch's state name) are
    the rule's states, the others are scalars that the rule needs from earlier steps.
    """

    def register(step):
        letters = inspect.getfullargspec(step).args[2:]

        @functools.wraps(step)
        def run(
            p0,
            grads,
            *,
            dtype=np.longdouble,
            grad_scale=1.0,
            maximize=False,
            weight_decay=0.0,
            decoupled_weight_decay=0.0,
            **hyper,
        ):
            hyper = {key: value for key, value in step.__kwdefaults__.items() if key not in ("p", "p0")} | hyper
            if "weight_decay" in step.__kwdefaults__:  # the formulas say what it is
                hyper, weight_decay = hyper | {"weight_decay": weight_decay}, 0.0
            real = np.dtype(dtype).type
            p = np.array(p0, real)
            carried = [np.zeros_like(p) for _ in letters]

            # Infinities and NaNs are legitimate inputs here: they shall spread as IEEE 754 says, without warnings.
            with np.errstate(all="ignore"):
                for t, grad in enumerate(grads, start=1):
                    now = functools.partial(value_at, t, real)
                    h = {name: now(value, is_tuple=name == "betas") for name, value in hyper.items()}

                    g = now(grad_scale) * np.asarray(grad, real)
                    if maximize:
                        g = -g
                    # Zero decay means that there is no such term: 0·p would turn an infinite p into a NaN.
                    if now(weight_decay) != 0:
                        g = g + now(weight_decay) * p

                    # The parameter decays after its L2 term has been taken and before the update is subtracted.
                    if now(decoupled_weight_decay) != 0:
                        p = p * (1 - h.get("lr", 0) * now(decoupled_weight_decay))  # a missing lr is refused below
                    places = {"p": p, "p0": np.array(p0, real)}
                    asked = {key: place for key, place in places.items() if key in step.__kwdefaults__}
                    update, *carried = step(t, g, *carried, **h, **asked)
                    p = p - update

            by_letter = dict(zip(letters, carried, strict=True))
            return np.asarray(p), {name: np.asarray(by_letter[x]) for x, name in state_names.items()}

        ORACLES[step.__name__] = run
        return run

    return register


def value_at(t, real, value, is_tuple=False):
    """A hyper-parameter at the 1-based step t: a constant, a callable of t, or a sequence with one entry a step.

    With `is_tuple` the value at each step is itself a sequence, each entry of which may vary in the same three ways.
    """
    if callable(value):
        value = value(t)
    elif not is_tuple and np.ndim(value) > 0:
        value = value[t - 1]
    if is_tuple:
        return [value_at(t, real, entry) for entry in value]
    # Options (flags, and None for "not given") stay what they are; numbers are calculated with in the chosen type.
    return value if value is None or isinstance(value, bool) else real(value)
