"""Rules of whole matrices: products of the arrays' own library, between two elementwise ends from the table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from .base import LR, Hyper, Rule, State, flag, nonnegative


class Library(Protocol):
    """The products of a library of arrays; matrices are C-contiguous."""

    def normalize(self, x: Any, eps: float) -> None:
        """Divide a matrix by its Frobenius norm, or by `eps` where that is more."""

    def product(self, a: Any, b: Any, out: Any) -> None:
        """Write a @ b."""

    def add_product(self, c: Any, a: Any, b: Any, beta: float, alpha: float, out: Any) -> None:
        """Write beta*c + alpha*(a @ b); what is in `c` may be lost."""


class Ends(NamedTuple):
    """The hyper-parameters of a rule's parts, by those who take them.

    Attributes
    ----------
    first, last : mapping of str to float
        Those of the elementwise rules, 0 for what is not there.
    factor : float
        The factor of what the middle made, as the gradient of the last.
    middle : tuple of float
        Those of the middle.
    """

    first: Mapping[str, float]
    last: Mapping[str, float]
    factor: float
    middle: tuple[float, ...]


@dataclass(frozen=True)
class LibraryRule(Rule):
    """A rule of whole tensors. It is no row of the table, whose kernels update elements, but made of two of them.

    A step has three parts. `first` updates, by the gradient, a tensor of zeros in the parameter's place. The middle,
    `update`, makes another tensor of that by operations of a library of arrays. `last` has it as the gradient of the
    parameter. The bits of the ends are the same on every backend; those of the middle are its library's.

    Parameters
    ----------
    first, last : str
        The names of the rules that are the ends.

    Notes
    -----
    Of a `Rule`'s functions, ``fold(shape, t, decay, *own hyper-parameters)`` makes `Ends`.
    """

    first: str = ""
    last: str = ""

    def __post_init__(self) -> None:
        """Check nothing: no kernel is compiled from it."""

    @property
    def elementwise(self) -> bool:
        """Tell that elements are not updated by their own gradient and states alone."""
        return False

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Name no numbers: its ends have them."""
        return ()

    def fold_row(self, t: Any, row: Any, scalars: Any = ()) -> tuple[tuple, tuple]:
        """Make no coefficients: its ends do."""
        return (), ()

    def ends(self, shape: tuple[int, ...], t: int, row: Any) -> Ends:
        """The hyper-parameters of the parts of step t, for a parameter of that shape, from a row of them."""
        values = dict(zip(self.row, row, strict=True))
        ends: Ends = self.fold(shape, t, values["weight_decay"], *(values[name] for name in self.own))
        return ends._replace(first={**ends.first, "maximize": values["maximize"]})


@dataclass(frozen=True)
class MatrixRule(LibraryRule):
    """A rule whose middle is products of matrices. All states are those of `first`.

    Notes
    -----
    ``update(library, x, spare, gram, other, *middle)`` is given the matrix and room for its like and for two squares of
    its smaller side. It returns the one of `x` and `spare` that has the result.
    """

    @property
    def whole(self) -> str:
        """Say why a parameter is updated as a whole."""
        return f"{self.optimizer} multiplies whole matrices"

    def check_shape(self, shape: tuple[int, ...], name: str) -> None:
        """Check that a parameter is a matrix.

        Raises
        ------
        ValueError
            It is not.
        """
        if len(shape) != 2:
            raise ValueError(
                f"{name}: found shape {tuple(shape)}, expected two dimensions, for {self.optimizer} only supports 2D "
                "parameters: give others to an optimizer of their own, as AdamW"
            )


#: The ways in which the learning rate depends on the shape, by their names.
ADJUSTMENTS = ("original", "match_rms_adamw")


def fold_muon(shape, t, decay, lr, momentum, nesterov, a, b, c, eps, ns_steps, adjust_lr_fn):
    """Share Muon's hyper-parameters out among the parts of a step."""
    rows, columns = shape
    if adjust_lr_fn == ADJUSTMENTS.index("match_rms_adamw"):
        ratio = 0.2 * math.sqrt(max(rows, columns))
    else:
        ratio = math.sqrt(max(1.0, rows / max(columns, 1)))
    # qhm takes from zeros the weighted mean of the average and the gradient: what is orthogonalized has the other sign.
    first = {"lr": 1.0, "momentum": momentum, "nu": momentum if nesterov else 1.0}
    return Ends(first, {"lr": lr, "decoupled_weight_decay": decay}, -ratio, (a, b, c, eps, ns_steps))


def newton_schulz(library, x, spare, gram, other, a, b, c, eps, steps):
    """Bring the singular values near 1 by an odd polynomial, a*s + b*s**3 + c*s**5, applied `steps` times."""
    library.normalize(x, eps)
    wide = x.shape[0] <= x.shape[1]
    for _ in range(int(steps)):
        transposed = x.T
        library.product(*((x, transposed) if wide else (transposed, x)), gram)
        library.add_product(gram, gram, gram, b, c, other)
        library.add_product(x, *((other, x) if wide else (x, other)), a, 1.0, spare)
        x, spare = spare, x
    return x


RULES = (
    MatrixRule(
        "muon", "Muon",
        "Momentum, orthogonalized: a step against the nearest matrix whose singular values are all about 1",
        "b = momentum*b + (1 - momentum)*g; u = momentum*b + (1 - momentum)*g, or b without nesterov; "
        "x = u/max(norm(u), eps); x = h*x + (i*x*x' + j*(x*x')^2)*x, ns_steps times, h, i, j = ns_coefficients; "
        "p -= lr*weight_decay*p; p -= lr*sqrt(max(1, rows/columns))*x",
        "Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982; torch.optim.Muon",
        {
            "lr": nonnegative(1e-3, LR),
            "momentum": nonnegative(0.95, "decay rate of the gradient's average"),
            "nesterov": flag(True, "the direction is the average's once more averaged with the gradient"),
            "ns_a": Hyper(3.4445, "coefficients of the polynomial", part_of="ns_coefficients"),
            "ns_b": Hyper(-4.775, "coefficients of the polynomial", part_of="ns_coefficients"),
            "ns_c": Hyper(2.0315, "coefficients of the polynomial", part_of="ns_coefficients"),
            "eps": nonnegative(1e-7, "the least that the direction is divided by"),
            "ns_steps": Hyper(5, "times that the polynomial is applied", low=0, high=99, whole=True),
            "adjust_lr_fn": Hyper(
                None,
                "the factor of lr: sqrt(max(1, rows/columns)), which None is too, or 0.2*sqrt(max(rows, columns))",
                names=ADJUSTMENTS,
                optional=True,
            ),
        },
        newton_schulz, fold_muon, (State("momentum_buffer"),), decoupled=0.1, counted=False,
        first="qhm", last="sgd",
        notes=(
            "Parameters are matrices, of two dimensions. Embeddings, biases and all others are another optimizer's.",
            "Matrices are multiplied by the arrays' own library, with its threads: torch's tensors in bfloat16, as it "
            "does that itself, CuPy's arrays and, by NumPy, all others on the CPU in float32 (float64 of float64 "
            "parameters). The bits are the library's. An element that is not finite makes all of its matrix so. "
            "Gradients of some rows, 'state_memory' and `fastopt.distributed.Synchronous` are refused.",
        ),
    ),
)  # fmt: skip
