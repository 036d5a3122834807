"""The paper's problems, ready made: sparse linear models and matrix factorisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import check_integer, check_number
from . import engine
from .runner import Progress, Run, run
from .shared import SharedArrays


@dataclass(frozen=True)
class _Kernel:
    """A compiled kernel by its name, so that it is small to send to a process."""

    model: str
    rule: str
    loss: str
    options: tuple[Any, ...]

    def __call__(self, order: np.ndarray, lr: float, *arrays: np.ndarray) -> float:
        return engine.kernel(self.model, self.rule, self.loss)(order, lr, *arrays, *self.options)


def _run(
    kernel: _Kernel, examples: int, arrays: Mapping[str, np.ndarray], written: list[str], processes: bool, **how: Any
) -> tuple[Run, list[np.ndarray]]:
    """A run, and the arrays that it wrote."""
    if not processes:
        return run(kernel, examples, arrays, **how), [arrays[name] for name in written]
    with SharedArrays.create(**arrays) as shared:
        done = run(kernel, examples, shared, processes=True, **how)
        return done, [shared[name].copy() for name in written]


class LinearModel:
    """A sparse linear model: of the loss's mean over the examples, with an L2 penalty, the minimum by Hogwild (Niu,
    Recht, Ré and Wright 2011, section 2, "Sparse SVM")::

        for each example (x, y), for each j where x_j is stored:
            g_j = loss'(w.x, y)*x_j + l2*w_j/degree_j
            w_j = rule(w_j, g_j)

    with degree_j the number of entries of column j, as in the authors' code: all of a column's touches in an epoch add
    up to one L2 step. There is no intercept: give X a column of ones.

    Parameters
    ----------
    loss : str
        ``"hinge"`` (default), max(0, 1 - y*z), a linear SVM; ``"logistic"``, log(1 + exp(-y*z)); ``"squared"``,
        (z - y)**2/2; for z = w.x.
    rule : str
        ``"sgd"`` (default), ``"adagrad"``, or ``"async_adagrad"``, which loses no addition to the accumulator
        (`fastopt.hogwild.async_adagrad`). Each with `fastopt.numba`'s defaults.
    lr : float
        In the first epoch; finite, > 0; default 0.5.
    decay : float
        What lr is multiplied by after each epoch, in (0, 1]; default 0.9.
    l2 : float
        Finite, >= 0; default 0.
    seed : int
        Of the examples' order; at least 0; default 0.

    Attributes
    ----------
    coef_ : array of float32, shape (features,)
        w, after `fit`.
    run_ : Run
        Losses (of each example before its own update) and times of the epochs.

    Raises
    ------
    TypeError, ValueError
        An argument is of no use.

    Notes
    -----
    With several workers, each has copies of its own of the most frequent features' weights (up to 65536), and merges
    them with the others' by adding what it has changed: the 256 most frequent every 128 examples, the next 1792 every
    2048, the others every 16384 and at the end of an epoch. What all write all the time would otherwise go back and
    forth between the processors' caches, and two workers be slower than one. All other weights, and all of
    ``"async_adagrad"``'s, are raced for directly.

    With one worker there are no copies, and a fit is reproducible to the bit.
    """

    def __init__(
        self,
        loss: str = "hinge",
        rule: str = "sgd",
        *,
        lr: float = 0.5,
        decay: float = 0.9,
        l2: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.loss = _choice("loss", loss, engine.LOSSES)
        self.rule = _choice("rule", rule, engine.RULES)
        self.lr = check_number("lr", lr, 0, above=True)
        self.decay = check_number("decay", decay, 0, 1, above=True)
        self.l2 = check_number("l2", l2, 0)
        self.seed = check_integer("seed", seed, 0)

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        workers: int = 1,
        epochs: int = 10,
        processes: bool = False,
        progress: bool | Progress | None = None,
    ) -> LinearModel:
        """Learns `coef_`, from zero.

        Parameters
        ----------
        X : scipy.sparse CSR matrix, or tuple ``(indptr, indices, data)`` of its arrays
            Examples by features, computed with in float32. Of a tuple, the features are as many as the largest index
            says.
        y : array_like, shape (examples,)
            -1 and 1; any finite numbers for the squared loss.
        workers, epochs, processes, progress
            As for `run`; with processes, X is copied to shared memory.

        Returns
        -------
        LinearModel
            Itself.

        Raises
        ------
        TypeError, ValueError
            An argument is of no use.
        WorkerDied, KeyboardInterrupt
            As from `run`; `coef_` is as before.
        """
        starts, indices, values, features = _csr(X)
        examples = len(starts) - 1
        targets = _vector("y", y, examples)
        if self.loss != "squared" and not (np.abs(targets) == 1).all():
            found = np.unique(targets)[:5].tolist()
            raise ValueError(f"y: found values such as {found}, expected -1 and 1 for the {self.loss} loss")
        degree = np.bincount(indices, minlength=features)
        strength = (self.l2 / np.maximum(degree, 1)).astype(np.float32)
        hot = min(features, engine.HOT) if workers != 1 and self.rule != "async_adagrad" else 0
        splits = starts[:-1]
        if hot:
            by_frequency = np.argsort(-degree, kind="stable")
            rank = np.empty(features, np.uint32)
            rank[by_frequency] = np.arange(features, dtype=np.uint32)
            strength = strength[by_frequency]
            indices, values, splits = engine.arrange(starts, indices, values, rank, hot)
        arrays = {
            "starts": starts,
            "splits": splits,
            "columns": indices,
            "values": values,
            "targets": targets,
            "decay": strength,
            "table": np.zeros((1 + engine.RULES[self.rule].states, features), np.float32),
        }
        self.run_, (table,) = _run(
            _Kernel("linear", self.rule, self.loss, (hot, self.l2 > 0)),
            examples,
            arrays,
            ["table"],
            processes,
            lr=self.lr,
            decay=self.decay,
            seed=self.seed,
            workers=workers,
            epochs=epochs,
            progress=progress,
        )
        self.coef_ = table[0][rank] if hot else table[0]
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """w.x of each example; float32."""
        self._fitted()
        starts, indices, values, features = _csr(X)
        if features > len(self.coef_):
            raise ValueError(f"X: found {features} features, expected at most the {len(self.coef_)} of the fit")
        return engine.products(starts, indices, values, self.coef_)

    def predict(self, X: Any) -> np.ndarray:
        """-1 or 1 for each example; with the squared loss w.x itself."""
        z = self.decision_function(X)
        return z if self.loss == "squared" else np.where(z > 0, 1, -1)

    def score(self, X: Any, y: Any) -> float:
        """The share of examples predicted right; with the squared loss R^2, 1 - mean (z - y)^2 / variance of y."""
        predicted = self.predict(X)
        targets = _vector("y", y, len(predicted))
        if self.loss == "squared":
            return float(1 - np.mean((predicted - targets) ** 2) / np.var(targets))
        return float(np.mean(predicted == targets))

    def _fitted(self) -> None:
        if not hasattr(self, "coef_"):
            raise ValueError("the model has not been fitted; call fit(X, y) first")


class Factorization:
    """A matrix of which some entries are known, as the product of two of low rank, by Hogwild (Niu, Recht, Ré and
    Wright 2011, section 2, "Matrix completion")::

        for each entry (i, j, r):
            e = u_i.v_j + mean - r
            u_i, v_j = rule(u_i, e*v_j + l2*u_i), rule(v_j, e*u_i + l2*v_j)

    Parameters
    ----------
    rank : int
        The length of each u_i and v_j; at least 1. Multiples of 16 suit the processor.
    rule : str
        ``"adagrad"`` (default), ``"sgd"`` or ``"async_adagrad"``, as for `LinearModel`.
    lr : float
        In the first epoch; finite, > 0; default 0.1.
    decay : float
        What lr is multiplied by after each epoch, in (0, 1]; default 0.9.
    l2 : float
        Finite, >= 0; default 0.
    seed : int
        Of the entries' order and of what u and v begin at, normal with deviation 0.1; at least 0; default 0.

    Attributes
    ----------
    u_, v_ : array of float32, shapes (rows, rank) and (columns, rank)
        After `fit`.
    mean_ : float
        The mean of the entries.
    run_ : Run
        Losses (e**2/2, before each entry's own update) and times of the epochs.

    Raises
    ------
    TypeError, ValueError
        An argument is of no use.
    """

    def __init__(
        self,
        rank: int,
        rule: str = "adagrad",
        *,
        lr: float = 0.1,
        decay: float = 0.9,
        l2: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.rank = check_integer("rank", rank, 1)
        self.rule = _choice("rule", rule, engine.RULES)
        self.lr = check_number("lr", lr, 0, above=True)
        self.decay = check_number("decay", decay, 0, 1, above=True)
        self.l2 = check_number("l2", l2, 0)
        self.seed = check_integer("seed", seed, 0)

    def fit(
        self,
        i: Any,
        j: Any,
        r: Any,
        *,
        workers: int = 1,
        epochs: int = 10,
        processes: bool = False,
        progress: bool | Progress | None = None,
    ) -> Factorization:
        """Learns `u_` and `v_` from entries.

        Parameters
        ----------
        i, j : array_like of int, shape (entries,)
            Row and column of each, from 0. The matrix is as large as they say.
        r : array_like, shape (entries,)
            The entries; finite.
        workers, epochs, processes, progress
            As for `run`; with processes, the entries are copied to shared memory.

        Returns
        -------
        Factorization
            Itself.

        Raises
        ------
        TypeError, ValueError
            An argument is of no use.
        WorkerDied, KeyboardInterrupt
            As from `run`; `u_` and `v_` are as before.
        """
        rows, columns = _indices("i", i), _indices("j", j)
        if len(rows) != len(columns):
            raise ValueError(f"j: found {len(columns)} indices, expected as many as in i, {len(rows)}")
        ratings = _vector("r", r, len(rows))
        mean = float(ratings.mean(dtype=np.float64))
        random = np.random.default_rng(self.seed)
        shapes = [(int(index.max()) + 1, self.rank) for index in (rows, columns)]
        tables = [np.zeros((1 + engine.RULES[self.rule].states, *shape), np.float32) for shape in shapes]
        for table in tables:
            table[0] = 0.1 * random.standard_normal(table[0].shape, np.float32)
        arrays = {
            "first": rows,
            "second": columns,
            "ratings": ratings - np.float32(mean),
            "u": tables[0],
            "v": tables[1],
        }
        self.run_, (u, v) = _run(
            _Kernel("factorization", self.rule, "", (self.l2,)),
            len(rows),
            arrays,
            ["u", "v"],
            processes,
            lr=self.lr,
            decay=self.decay,
            seed=self.seed,
            workers=workers,
            epochs=epochs,
            progress=progress,
        )
        self.u_, self.v_, self.mean_ = u[0], v[0], mean
        return self

    def predict(self, i: Any, j: Any) -> np.ndarray:
        """u_i.v_j + mean for each pair; float32.

        Raises
        ------
        TypeError, ValueError
            An index is outside the fitted matrix, or there is no fit.
        """
        if not hasattr(self, "u_"):
            raise ValueError("the model has not been fitted; call fit(i, j, r) first")
        rows, columns = _indices("i", i), _indices("j", j)
        for name, index, table in (("i", rows, self.u_), ("j", columns, self.v_)):
            if index.max() >= len(table):
                raise ValueError(
                    f"{name}: found index {index.max()}, expected indices below {len(table)}, as in the fit"
                )
        return (self.u_[rows] * self.v_[columns]).sum(axis=1) + np.float32(self.mean_)

    def score(self, i: Any, j: Any, r: Any) -> float:
        """R^2: 1 - mean squared error / variance of r."""
        predicted = self.predict(i, j)
        ratings = _vector("r", r, len(predicted))
        return float(1 - np.mean((predicted - ratings) ** 2) / np.var(ratings))


# ---- arguments ----


def _choice(name: str, value: Any, among: Mapping[str, Any]) -> str:
    if not isinstance(value, str) or value not in among:
        raise ValueError(f"{name}: found {value!r}, expected one of {', '.join(map(repr, among))}")
    return value


def _csr(X: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """indptr as int64, indices as uint32, data as float32, and the number of columns; checked."""
    if isinstance(X, tuple) and len(X) == 3:
        (indptr, indices, data), features = map(np.asarray, X), None
    elif getattr(X, "format", None) == "csr":
        indptr, indices, data, features = X.indptr, X.indices, X.data, X.shape[1]
    else:
        raise TypeError(
            f"X: found {type(X).__name__}, expected a CSR matrix, as scipy.sparse.csr_matrix(X) makes one, or a tuple "
            f"(indptr, indices, data)"
        )
    for name, array in (("indptr", indptr), ("indices", indices)):
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise TypeError(
                f"X: found {name} of dtype {array.dtype}, shape {array.shape}, expected integers, 1-dimensional"
            )
    if data.dtype.kind not in "biuf" or data.shape != indices.shape:
        raise TypeError(
            f"X: found data of dtype {data.dtype}, shape {data.shape}, expected real numbers, one per index"
        )
    if len(indptr) < 2 or indptr[0] != 0 or indptr[-1] != len(indices) or (np.diff(indptr.astype(np.int64)) < 0).any():
        raise ValueError("X: found an indptr that is not 0, ..., len(indices) in ascending order, of at least one row")
    low, high = (int(indices.min()), int(indices.max())) if len(indices) else (0, -1)
    limit = 2**31 if features is None else features
    if low < 0 or high >= limit:
        raise ValueError(f"X: found column index {low if low < 0 else high}, expected indices in [0, {limit})")
    values = np.ascontiguousarray(data, np.float32)
    if not np.isfinite(values).all():
        raise ValueError("X: found NaN or infinity, expected finite values")
    columns = np.ascontiguousarray(indices)
    columns = columns.view(np.uint32) if columns.dtype == np.int32 else columns.astype(np.uint32)
    return np.ascontiguousarray(indptr, np.int64), columns, values, high + 1 if features is None else features


def _vector(name: str, values: Any, n: int) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf" or array.shape != (n,):
        raise ValueError(f"{name}: found dtype {array.dtype}, shape {array.shape}, expected {n} real numbers")
    array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: found NaN or infinity, expected finite values")
    return array


def _indices(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "iu" or array.ndim != 1 or not array.size:
        raise TypeError(
            f"{name}: found dtype {array.dtype}, shape {array.shape}, expected integers, 1-dimensional, at least one"
        )
    if array.min() < 0 or array.max() >= 2**31:
        raise ValueError(
            f"{name}: found index {array.min() if array.min() < 0 else array.max()}, expected indices >= 0"
        )
    return np.ascontiguousarray(array, np.uint32)
