"""Rules of averages over rows and columns: operations of the arrays' library between two elementwise ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from .base import LR, Hyper, State, flag, nonnegative
from .matrix import Ends, LibraryRule


class Averaged(Protocol):
    """A tensor in the middle of a step, with its parameter and averages; here x is the gradient."""

    def rms_of_parameter(self) -> float:
        """Return the root of the mean square of the parameter's elements; 0 where there is none."""

    def average(self, weight: float) -> None:
        """Bring the averages of x*x nearer to what they are now, by a weight in [0, 1]."""

    def divide(self, eps: float) -> float:
        """Divide x by the root of its averages, at least `eps`; return the root of the mean square of the quotients.

        `eps` is NaN for that of the parameter's dtype.
        """


@dataclass(frozen=True)
class FactoredRule(LibraryRule):
    """A rule whose second moments are averages over rows and columns.

    Of two dimensions and more, `row_var` has an element in place of the last dimension, `col_var` in place of the last
    but one; of fewer, `variance` has all elements. All are in the dtype of computing.

    Notes
    -----
    ``update(tensor, *middle)`` is given the tensor as `Averaged`. It returns the factor of what it has made, as the
    gradient of the last end.
    """

    @property
    def whole(self) -> str:
        """Say why a parameter is updated as a whole."""
        return f"{self.optimizer} measures whole tensors"

    def states_of(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Names of the states that a parameter of that shape has."""
        row, column, every = self.state_names
        return (row, column) if len(shape) > 1 else (every,)

    def state_shape(self, name: str, shape: tuple[int, ...], copies: int) -> tuple[int, ...]:
        """The shape of a state of a parameter of that shape; one that storage adds has the parameter's."""
        row, column, _ = self.state_names
        if name == row:
            return (*shape[:-1], 1)
        return (*shape[:-2], 1, *shape[-1:]) if name == column else tuple(shape)


def fold_adafactor(shape, t, decay, lr, beta2_decay, eps1, eps2, d, relative_step, scale_parameter):
    """Share Adafactor's hyper-parameters out among the parts of a step."""
    rate = min(lr, 1.0 / math.sqrt(t)) if relative_step else lr
    # The first end takes the gradient from zeros: what is averaged has the other sign, and the middle's factor too.
    middle = (float(t) ** beta2_decay, eps1, eps2, d, rate, scale_parameter)
    return Ends({"lr": 1.0}, {"lr": 1.0, "decoupled_weight_decay": lr * decay}, 1.0, middle)


def adafactor(tensor, weight, eps1, eps2, d, rate, scale_parameter):
    """Divide the gradient by its averages; return the factor that clips it and scales it by the parameter's size."""
    size = max(eps2, tensor.rms_of_parameter()) if scale_parameter else 1.0
    tensor.average(weight)
    return -rate * size / max(1.0, tensor.divide(eps1) / d)


RULES = (
    FactoredRule(
        "adafactor", "Adafactor",
        "RMSprop with averages over rows and columns in place of an average for each element, and clipped steps",
        "w = t^beta2_decay; r = (1 - w)*r + w*mean(g^2), a mean a row; c = (1 - w)*c + w*mean(g^2), a mean a column; "
        "v = r*c/max(mean(r), eps1), or v = (1 - w)*v + w*g^2 of one dimension; u = g/max(sqrt(v), eps1); "
        "a = min(lr, 1/sqrt(t))*max(eps2, rms(p)); p -= lr*weight_decay*p; p -= a*u/max(1, rms(u)/d)",
        "Shazeer and Stern 2018, arXiv:1804.04235; torch.optim.Adafactor",
        {
            "lr": nonnegative(1e-2, f"{LR}, and the most that the relative one is"),
            "beta2_decay": Hyper(-0.8, "exponent of the step, which is a new square's weight", high=0.0),
            "eps1": Hyper(
                None, "what a gradient is divided by at least, None for the eps of the parameter's dtype",
                low=0.0, optional=True, part_of="eps",
            ),
            "eps2": Hyper(1e-3, "the size that a parameter has at least", low=0.0, part_of="eps"),
            "d": Hyper(1.0, "the root mean square that updates are clipped to", low=1.0, infinite=True),
            "relative_step": flag(True, "the rate is at most 1/sqrt(t)"),
            "scale_parameter": flag(True, "steps are times the root mean square of the parameter, at least eps[1]"),
        },
        adafactor, fold_adafactor,
        (State("row_var", positive=True), State("col_var", positive=True), State("variance", positive=True)),
        decoupled=0.0,
        first="sgd", last="sgd",
        notes=(
            "Means and roots are NumPy's, in one thread, on the CPU, and on a device torch's or CuPy's; so are their "
            "bits. States are in float32, of float64 parameters in float64. An element that is not finite "
            "makes others of its tensor so. Gradients of some rows, 'state_memory', a 'state_dtype' of fewer bits and "
            "`fastopt.distributed.Synchronous` are refused.",
            "The epsilons are torch's. The paper adds its first, 1e-30, to each squared gradient instead: "
            "``eps=(1e-30, 1e-3)`` is next to it. Its ``d`` is 1. ``relative_step=False`` takes lr as it is, as optax "
            "does; the paper's lr is 0.01.",
        ),
    ),
)  # fmt: skip
