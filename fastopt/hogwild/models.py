"""The paper's problems, ready made: sparse linear models and matrix factorisation."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numba import typeof

from ..backends.numba_arithmetic import ieee_arithmetic
from ..checks import check_flag, check_integer, check_name, check_number, did_you_mean, wrong_type, wrong_value
from ..settings import check_threads
from . import engine
from .runner import Compiled, Progress, Run, check_progress, run
from .shared import SharedArrays


@dataclass(frozen=True)
class _Kernel(Compiled):
    """A compiled kernel by its name, so that it is small to send to a process."""

    model: str
    rule: str
    loss: str
    options: tuple[Any, ...]

    def __call__(self, order: np.ndarray, lr: float, *arrays: np.ndarray) -> float:
        return engine.kernel(self.model, self.rule, self.loss)(order, lr, *arrays, *self.options)

    def prepare(self, order: np.ndarray, arrays: Sequence[np.ndarray]) -> None:
        """Compiles it for arguments of these types."""
        given = (order, 1.0, *arrays, *self.options)
        engine.kernel(self.model, self.rule, self.loss).compile(tuple(map(typeof, given)))


_M = TypeVar("_M", bound="_Model")


class _Model:
    """Base of the models: arguments, as scikit-learn's tools handle those of its own estimators, and runs."""

    lr: float
    decay: float
    seed: int

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments.

        Parameters
        ----------
        deep : bool
            For scikit-learn; it makes no difference.
        """
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self: _M, **params: Any) -> _M:
        """Changes arguments of the constructor; the next `fit` goes by them.

        Raises
        ------
        TypeError, ValueError
            There is no such argument, or its value is of no use; nothing has changed.
        """
        known = self.get_params()
        for name in params:
            check_name(f"{type(self).__name__}.set_params", name, known)
        vars(self).update(vars(type(self)(**known | params)))
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.get_params().items())})"

    def _run(
        self,
        kernel: _Kernel,
        examples: int,
        arrays: Mapping[str, np.ndarray],
        written: list[str],
        processes: bool,
        **how: Any,
    ) -> tuple[Run, list[np.ndarray]]:
        """A run, and the arrays that it wrote."""
        show = check_progress(how.pop("progress"))
        processes = check_flag("processes", processes)

        def progress(epoch: int, loss: float, seconds: float) -> None:
            if show is not None:
                show(epoch, loss, seconds)
            _check_finite(loss, epoch)

        how |= {"lr": self.lr, "decay": self.decay, "seed": self.seed, "progress": progress}
        if processes:
            with SharedArrays.create(**arrays) as shared:
                done = run(kernel, examples, shared, processes=True, **how)
                found = [shared[name].copy() for name in written]
        else:
            done, found = run(kernel, examples, arrays, **how), [arrays[name] for name in written]
        for table in found:
            _check_finite(table, len(done.loss))
        return done, found


def _check_finite(values: Any, epoch: int) -> None:
    if not np.isfinite(values).all():
        raise FloatingPointError(
            f"the model diverged in epoch {epoch}: its loss or parameters are infinite or NaN; choose a smaller lr, or "
            "scale the examples"
        )


class LinearModel(_Model):
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
    n_features_in_, classes_ : int, array
        What scikit-learn's tools ask for: the number of features, and -1 and 1, but not with the squared loss.
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
        _check_choice("loss", loss, engine.LOSSES)
        _check_common(rule, lr, decay, l2, seed)
        # Arguments are kept as given: scikit-learn's clone() compares by identity.
        self.loss, self.rule, self.lr, self.decay, self.l2, self.seed = loss, rule, lr, decay, l2, seed

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        workers: int = 1,
        epochs: int = 10,
        processes: bool = False,
        progress: bool | Progress | None = None,
        features: int | None = None,
    ) -> LinearModel:
        """Learns `coef_`, from zero.

        Parameters
        ----------
        X : sparse matrix of SciPy's, array_like, or tuple ``(indptr, indices, data)`` of a CSR matrix's arrays
            Examples by features, computed with in float32. What is no CSR matrix is made one.
        y : array_like, shape (examples,)
            -1 and 1; any finite numbers for the squared loss.
        workers, epochs, processes, progress
            As for `run`; with processes, X is copied to shared memory.
        features : int, optional
            How many there are, where X is a tuple; by default as many as its largest index says, which is taken for a
            mistake if they would be more than 2**24 and more than 16 times the entries.

        Returns
        -------
        LinearModel
            Itself.

        Raises
        ------
        TypeError, ValueError
            An argument is of no use.
        FloatingPointError
            The model diverged: this epoch left infinite or NaN parameters or losses. `coef_` is as before.
        WorkerDied, KeyboardInterrupt
            As from `run`; `coef_` is as before.
        """
        self.set_params()  # checks what may have been assigned
        starts, indices, values, features = _csr(X, features)
        examples = len(starts) - 1
        targets = _vector("y", y, examples)
        if self.loss != "squared" and not (np.abs(targets) == 1).all():
            found = np.unique(targets)[:5].tolist()
            raise ValueError(f"y: found values such as {found}, expected -1 and 1 for the {self.loss} loss")
        degree = np.bincount(indices, minlength=features)
        l2 = float(self.l2)
        with ieee_arithmetic():
            strength = (l2 / np.maximum(degree, 1)).astype(np.float32)
        workers = check_threads("workers", workers)
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
        self.run_, (table,) = self._run(
            _Kernel("linear", self.rule, self.loss, (hot, l2 > 0)),
            examples,
            arrays,
            ["table"],
            processes,
            workers=workers,
            epochs=epochs,
            progress=progress,
        )
        self.coef_ = table[0][rank] if hot else table[0]
        self.n_features_in_ = features
        if self.loss != "squared":
            self.classes_ = np.array([-1, 1])
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """w.x of each example; float32."""
        self._fitted()
        starts, indices, values, features = _csr(X, limited=False)
        if features > len(self.coef_):
            raise ValueError(f"X: found {features} features, expected at most the {len(self.coef_)} of the fit")
        with ieee_arithmetic():
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

    @property
    def _estimator_type(self) -> str:
        """Kind of estimator for older versions of scikit-learn; newer ones ask for tags."""
        return "regressor" if self.loss == "squared" else "classifier"

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        return Tags(
            estimator_type=self._estimator_type,
            target_tags=TargetTags(required=True),
            classifier_tags=None if self.loss == "squared" else ClassifierTags(multi_class=False),
            regressor_tags=RegressorTags() if self.loss == "squared" else None,
            input_tags=InputTags(sparse=True),
        )


class Factorization(_Model):
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
        check_integer("rank", rank, 1)
        _check_common(rule, lr, decay, l2, seed)
        self.rank, self.rule, self.lr, self.decay, self.l2, self.seed = rank, rule, lr, decay, l2, seed

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
        shape: tuple[int, int] | None = None,
    ) -> Factorization:
        """Learns `u_` and `v_` from entries.

        Parameters
        ----------
        i, j : array_like of int, shape (entries,)
            Row and column of each, from 0.
        r : array_like, shape (entries,)
            The entries; finite.
        workers, epochs, processes, progress
            As for `run`; with processes, the entries are copied to shared memory.
        shape : tuple of two int, optional
            Rows and columns of the matrix; by default as many as the largest indices say, which are taken for a mistake
            if they would be more than 2**24 and more than 16 times the entries.

        Returns
        -------
        Factorization
            Itself.

        Raises
        ------
        TypeError, ValueError
            An argument is of no use.
        FloatingPointError
            The model diverged: this epoch left infinite or NaN parameters or losses. `u_` and `v_` are as before.
        WorkerDied, KeyboardInterrupt
            As from `run`; `u_` and `v_` are as before.
        """
        self.set_params()  # checks what may have been assigned
        if shape is not None and (not isinstance(shape, (tuple, list)) or len(shape) != 2):
            raise wrong_type("shape", shape, "a tuple of two integers, rows and columns")
        rows, columns = _indices("i", i), _indices("j", j)
        if len(rows) != len(columns):
            raise ValueError(f"j: found {len(columns)} indices, expected as many as in i, {len(rows)}")
        ratings = _vector("r", r, len(rows))
        random = np.random.default_rng(self.seed)
        asked = shape or (None, None)
        sizes = [
            _extent(name, int(index.max()), len(index), given, f"shape[{k}]")
            for k, (name, index, given) in enumerate(zip("ij", (rows, columns), asked, strict=True))
        ]
        states = engine.RULES[self.rule].states
        tables = [np.zeros((1 + states, size, int(self.rank)), np.float32) for size in sizes]
        with ieee_arithmetic():
            mean = float(ratings.mean(dtype=np.float64))
            ratings = ratings - np.float32(mean)
            for table in tables:
                table[0] = 0.1 * random.standard_normal(table[0].shape, np.float32)
        arrays = {
            "first": rows,
            "second": columns,
            "ratings": ratings,
            "u": tables[0],
            "v": tables[1],
        }
        self.run_, (u, v) = self._run(
            _Kernel("factorization", self.rule, "", (float(self.l2),)),
            len(rows),
            arrays,
            ["u", "v"],
            processes,
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


def _check_choice(name: str, value: Any, among: Mapping[str, Any]) -> None:
    if not isinstance(value, str) or value not in among:
        raise wrong_value(name, value, f"one of {', '.join(map(repr, among))}{did_you_mean(value, among)}")


def _check_common(rule: Any, lr: Any, decay: Any, l2: Any, seed: Any) -> None:
    _check_choice("rule", rule, engine.RULES)
    check_number("lr", lr, 0, above=True)
    check_number("decay", decay, 0, 1, above=True)
    check_number("l2", l2, 0)
    check_integer("seed", seed, 0)


def _most(entries: int) -> int:
    """Return the limit for rows or columns whose number was not given."""
    return max(2**24, 16 * entries)


def _extent(name: str, highest: int, entries: int, given: Any, argument: str) -> int:
    """Return the number of rows, columns or features: as given, else as the highest index says."""
    if given is not None:
        size = check_integer(argument, given, 1, 2**31)
        if highest >= size:
            raise ValueError(f"{name}: found index {highest}, expected indices below {size}, as {argument} says")
        return size
    if highest >= (limit := _most(entries)):
        raise ValueError(
            f"{name}: found index {highest} among {entries} entries, expected indices below {limit}: "
            f"parameters would be made for all of them; say {argument} if there are so many"
        )
    return highest + 1


def _csr(X: Any, given: Any = None, limited: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """indptr as int64, indices as uint32, data as float32, and the number of columns; checked."""
    features = None
    if isinstance(X, tuple) and len(X) == 3:
        indptr, indices, data = (_array("X", part) for part in X)
    else:
        indptr, indices, data, features = _as_csr(X)
        if given is not None and given != features:
            raise wrong_value("features", given, f"{features} as X has, or None")
        if limited and given is None and features > (most := _most(len(indices))):
            raise ValueError(
                f"X: found {features} columns and {len(indices)} entries, expected at most {most} columns: parameters "
                "would be made for all of them; say features if there are so many"
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
        raise ValueError(
            "X: found an indptr that is not 0, ..., len(indices) in ascending order, of at least one row; expected such"
        )
    low, high = (int(indices.min()), int(indices.max())) if len(indices) else (0, -1)
    limit = features if features is not None else 2**31
    if low < 0 or high >= limit:
        raise ValueError(f"X: found column index {low if low < 0 else high}, expected indices in [0, {limit})")
    if features is None:
        features = _extent("X", high, len(indices), given, "features") if limited else high + 1
    values = np.ascontiguousarray(data, np.float32)
    if not np.isfinite(values).all():
        raise ValueError("X: found NaN or infinity, expected finite values")
    columns = np.ascontiguousarray(indices)
    columns = columns.view(np.uint32) if columns.dtype == np.int32 else columns.astype(np.uint32)
    return np.ascontiguousarray(indptr, np.int64), columns, values, features


def _as_csr(X: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The arrays of a matrix as a CSR matrix, and the number of its columns."""
    if hasattr(X, "tocsr") and len(X.shape) == 2:
        X = X.tocsr()
        return X.indptr, X.indices, X.data, X.shape[1]
    try:
        dense = np.asarray(X)
    except ValueError:  # rows of several lengths
        dense = np.empty(0, object)
    if dense.ndim != 2 or dense.dtype.kind not in "biuf":
        raise TypeError(
            f"X: found {type(X).__name__} of dtype {dense.dtype}, shape {dense.shape}, expected a CSR matrix, as "
            "scipy.sparse.csr_matrix(X) makes one, what can be made one, or a tuple (indptr, indices, data)"
        )
    stored = dense != 0
    return np.concatenate([[0], np.cumsum(stored.sum(axis=1))]), np.nonzero(stored)[1], dense[stored], dense.shape[1]


def _array(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except (TypeError, ValueError):  # as of rows of several lengths
        raise wrong_type(name, values, "an array_like of numbers") from None


def _vector(name: str, values: Any, n: int) -> np.ndarray:
    array = _array(name, values)
    if array.dtype.kind not in "biuf" or array.shape != (n,):
        raise ValueError(f"{name}: found dtype {array.dtype}, shape {array.shape}, expected {n} real numbers")
    array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: found NaN or infinity, expected finite values")
    return array


def _indices(name: str, values: Any) -> np.ndarray:
    array = _array(name, values)
    if array.dtype.kind not in "iu" or array.ndim != 1 or not array.size:
        raise TypeError(
            f"{name}: found dtype {array.dtype}, shape {array.shape}, expected integers, 1-dimensional, at least one"
        )
    if array.min() < 0 or array.max() >= 2**31:
        raise ValueError(
            f"{name}: found index {array.min() if array.min() < 0 else array.max()}, expected indices >= 0"
        )
    return np.ascontiguousarray(array, np.uint32)
