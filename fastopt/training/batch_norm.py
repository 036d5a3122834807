"""Batch normalization: forward and backward, in as few passes over memory as there can be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..checks import check_flag, check_integer, check_number, describe, differing, wrong_type, wrong_value
from ..settings import check_threads, get_num_threads

_GRAIN = 65536  # elements for each thread, below which starting it costs more than it brings
_STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class _Pass(NamedTuple):
    """The results of a forward pass that the backward pass needs."""

    x: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    measured: bool


class BatchNorm:
    """Batch normalization of NumPy arrays, as ``torch.nn.BatchNorm1d`` to ``3d`` do it.

    Ioffe and Szegedy 2015, arXiv:1502.03167. Over the examples (and places) of each feature, in a training::

        mean = sum(x)/n,  var = sum((x - mean)^2)/n
        y = weight*(x - mean)/sqrt(var + eps) + bias
        running_mean = (1 - momentum)*running_mean + momentum*mean
        running_var = (1 - momentum)*running_var + momentum*var*n/(n - 1)

    elsewhere with the running mean and variance. The gradients go through mean and variance, with
    z = (x - mean)/sqrt(var + eps)::

        dbias = sum(dy),  dweight = sum(dy*z)
        dx = weight/sqrt(var + eps)*(dy - dbias/n - z*dweight/n)

    Parameters
    ----------
    features : int
        Their number.
    eps : float
        Above 0; default 1e-5.
    momentum : float or None
        The share of the batch in the running statistics, in [0, 1]; default 0.1. None averages all batches alike.
    axis : int
        The axis of the features; default 1, as in torch. -1 is that of arrays whose last axis they are.
    dtype : dtype
        float32 (default) or float64, of all arrays.
    threads : int, optional
        At most so many threads; by default `fastopt.get_num_threads`. Their number changes no bit.

    Attributes
    ----------
    params, grads : dict of array
        ``weight`` and ``bias``, and their gradients, which `backward` writes: for an optimizer.
    running_mean, running_var : array
        For evaluation.
    num_batches_tracked : int
        The forward passes of training.

    Raises
    ------
    TypeError, ValueError
        An argument is of no use; the message names it.

    Notes
    -----
    A batch is read twice and written once, forward as backward: for the statistics, and for the result. Sums are added
    in a fixed order, of blocks of 32 examples in `dtype`, of the blocks in float64.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt.training import BatchNorm
    >>> x = np.random.default_rng(0).standard_normal((100, 3)).astype("f4") * 5 + 2
    >>> norm = BatchNorm(3)
    >>> opt = fastopt.SGD(norm.params, lr=0.1)
    >>> y = norm.forward(x)
    >>> np.allclose(y.mean(axis=0), 0, atol=1e-6), y.std(axis=0).round(3).tolist()
    (True, [1.0, 1.0, 1.0])
    >>> dx = norm.backward(np.ones_like(y))
    >>> opt.step(norm.grads)
    >>> norm.params["bias"].tolist(), np.allclose(dx, 0, atol=1e-6)
    ([-10.0, -10.0, -10.0], True)
    """

    def __init__(
        self,
        features: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        axis: int = 1,
        dtype: Any = np.float32,
        threads: int | None = None,
    ) -> None:
        self.features = check_integer("features", features, 1, 2**31 - 1)
        self.eps = check_number("eps", eps, 0, above=True)
        self.momentum = None if momentum is None else check_number("momentum", momentum, 0, 1)
        self.axis = check_integer("axis", axis, -1, 1)
        if self.axis == 0:
            raise wrong_value("axis", axis, "1 or -1: examples are along the first")
        try:
            self.dtype = np.dtype(dtype)
        except Exception:  # of what is no dtype
            raise wrong_type("dtype", dtype, "float32 or float64") from None
        if self.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise wrong_value("dtype", dtype, "float32 or float64")
        self.threads = None if threads is None else check_threads("threads", threads)
        self.params = {"weight": np.ones(features, self.dtype), "bias": np.zeros(features, self.dtype)}
        self.grads = {name: np.zeros_like(param) for name, param in self.params.items()}
        self.running_mean = np.zeros(features, self.dtype)
        self.running_var = np.ones(features, self.dtype)
        self.num_batches_tracked = 0
        self._last: _Pass | None = None

    def forward(self, x: np.ndarray, training: bool = True, out: np.ndarray | None = None) -> np.ndarray:
        """Normalize a batch.

        Parameters
        ----------
        x : array
            Examples along the first axis. It is kept for `backward`: leave it as it is until then.
        training : bool
            True (default) uses the batch's own mean and variance, and has the running ones follow; False uses those.
        out : array, optional
            The memory of the result; a new array by default.

        Returns
        -------
        numpy.ndarray
            y, of the shape of `x`.

        Raises
        ------
        TypeError, ValueError
            `x` or `out` is of another dtype or shape, or a batch to train on has fewer than two values of a feature.
        """
        training = check_flag("training", training)
        table, n = self._table(x, "x")
        if training and n < 2:
            raise ValueError(f"x: found {n} values of each feature, expected at least 2 to train on")
        result = self._result(x, table, out, "x")
        if training:
            mean, var = np.empty(self.features), np.empty(self.features)
        else:
            mean, var = self.running_mean.astype(np.float64), self.running_var.astype(np.float64)
        _forward(self, table, n, mean, var, result, training)
        if training:
            self.num_batches_tracked += 1
            share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            self.running_mean[:] = (1 - share) * self.running_mean + share * mean
            self.running_var[:] = (1 - share) * self.running_var + share * (var * (n / (n - 1)))
        self._last = _Pass(table, mean, var, training)
        return result.reshape(x.shape) if out is None else out

    def backward(self, dy: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Take the gradient of the last forward pass's result to that of its input; write those of `params` to `grads`.

        Parameters
        ----------
        dy : array
            The loss's gradient with respect to y.
        out : array, optional
            The memory of the result, which may be that of `dy`; a new array by default.

        Returns
        -------
        numpy.ndarray
            The loss's gradient with respect to x.

        Raises
        ------
        TypeError, ValueError
            There was no forward pass, or `dy` or `out` is of another dtype or shape than its `x`.
        """
        if self._last is None:
            raise ValueError("dy: found no forward pass before, expected forward(x)")
        table, n = self._table(dy, "dy")
        if table.shape != self._last.x.shape:
            raise ValueError(f"dy: found shape {dy.shape}, expected that of the last forward pass's x")
        result = self._result(dy, self._last.x, out, "dy")
        _backward(self, table, n, self._last, result)
        return result.reshape(dy.shape) if out is None else out

    def _table(self, x: Any, name: str) -> tuple[np.ndarray, int]:
        """A batch as (examples, features), or (examples, features, places), with the number of values of a feature."""
        if not isinstance(x, np.ndarray):
            raise wrong_type(name, x, "a NumPy array")
        if x.dtype != self.dtype:
            raise TypeError(f"{name}: found dtype {x.dtype}, expected {self.dtype}")
        if x.ndim < 2 or x.shape[self.axis] != self.features:
            raise ValueError(f"{name}: found shape {x.shape}, expected {self.features} features along axis {self.axis}")
        dense = np.ascontiguousarray(x)
        if self.axis == -1 or x.ndim == 2:
            dense = dense.reshape(math.prod(x.shape[:-1]), self.features)
        else:
            dense = dense.reshape(len(x), self.features, math.prod(x.shape[2:]))
        return dense, x.size // self.features

    def _result(self, x: np.ndarray, kept: np.ndarray, out: Any, name: str) -> np.ndarray:
        """The memory of a result, in the shape of `kept`, which it does not share."""
        if out is None:
            return np.empty(kept.shape, self.dtype)
        if not isinstance(out, np.ndarray):
            raise wrong_type("out", out, "a NumPy array or None")
        if out.dtype != self.dtype or out.shape != x.shape:
            raise wrong_value("out", f"{out.dtype} of shape {out.shape}", f"{self.dtype} of shape {x.shape}, as {name}")
        if not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError("out: found a read-only array, or one with gaps, expected a writable C-contiguous one")
        if np.may_share_memory(out, kept):
            raise ValueError("out: found memory of the forward pass's x, expected other: backward needs that")
        return out.reshape(kept.shape)

    def state_dict(self) -> dict[str, Any]:
        """Parameters, running statistics and the number of batches, under torch's names; the arrays are not copies."""
        return {
            **self.params,
            "running_mean": self.running_mean,
            "running_var": self.running_var,
            "num_batches_tracked": self.num_batches_tracked,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, of this class or, as arrays, of torch's.

        Parameters
        ----------
        state_dict : mapping
            From `state_dict`. It is written into the arrays that are here.

        Raises
        ------
        TypeError, ValueError
            It is no such state, or of other features; nothing has changed.
        """
        if not isinstance(state_dict, Mapping):
            raise wrong_type("state_dict", state_dict, "what state_dict() returned")
        if set(state_dict) != set(_STATE):
            raise ValueError(f"state_dict: found {sorted(map(str, state_dict))}{differing(state_dict, _STATE)}")
        arrays = {}
        for name, own in self.state_dict().items():
            if isinstance(own, np.ndarray):
                found = np.asarray(state_dict[name])
                if found.dtype.kind != "f" or found.shape != own.shape:
                    raise ValueError(f"state_dict['{name}']: found {describe(found)}, expected {self.features} floats")
                arrays[name] = own, found
        count = check_integer("state_dict['num_batches_tracked']", state_dict["num_batches_tracked"], 0)
        for own, found in arrays.values():
            own[:] = found
        self.num_batches_tracked = count

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_last": None}  # the batch is the caller's

    def __repr__(self) -> str:
        momentum = f"momentum={self.momentum}"
        return f"BatchNorm({self.features}, eps={self.eps}, {momentum}, axis={self.axis}, dtype={self.dtype})"


def _run(norm: BatchNorm, kernel: Any, table: tuple[Any, ...], units: int, elements: int, parts: int = 4) -> None:
    """Run a kernel over units of so many elements, some parts for each thread where there are enough of them."""
    from ..backends.numba_cpu.threads import run_parallel

    threads = norm.threads or get_num_threads()
    grain = max(1, -(-_GRAIN // max(1, elements)))
    run_parallel(kernel, table, units, max(1, -(-units // (parts * threads))), grain, 1, threads)


def _run_phases(norm: BatchNorm, kernel: Any, table: tuple[Any, ...], x: np.ndarray) -> None:
    """Run a kernel until its phases are done: threads wait for each other in between, and return where that is long."""
    from .batch_norm_kernels import cut

    _, units, elements, stripes = cut(x)
    claims, done = np.zeros((3, max(units, stripes)), np.int64), np.zeros(3, np.int64)
    while done[1] < stripes or done[2] < units:
        _run(norm, kernel, (*table, claims, done), max(units, 1), elements, parts=1)


def _forward(
    norm: BatchNorm, x: np.ndarray, n: int, mean: np.ndarray, var: np.ndarray, y: np.ndarray, measure: bool
) -> None:
    """Normalize, and measure mean and variance if they are to be."""
    from ..backends.numba_arithmetic import ieee_arithmetic
    from . import batch_norm_kernels as kernels

    weight, bias = norm.params["weight"], norm.params["bias"]
    with ieee_arithmetic():
        if x.ndim == 3:
            table = (x, weight, bias, mean, var, y, norm.eps, measure)
            _run(norm, kernels.forward_planes, table, norm.features, n)
            return
        sums, squares = np.empty((2, kernels.cut(x)[0] if measure else 0, norm.features), norm.dtype)
        coefficients = np.empty((3, norm.features), norm.dtype)
        table = (x, weight, bias, mean, var, norm.eps, measure, sums, squares, *coefficients, y)
        _run_phases(norm, kernels.forward_table, table, x)


def _backward(norm: BatchNorm, dy: np.ndarray, n: int, last: _Pass, dx: np.ndarray) -> None:
    """Write the gradients of input and parameters."""
    from ..backends.numba_arithmetic import ieee_arithmetic
    from . import batch_norm_kernels as kernels

    x, mean, var, measured = last
    weight, grads = norm.params["weight"], (norm.grads["weight"], norm.grads["bias"])
    with ieee_arithmetic():
        if x.ndim == 3:
            table = (dy, x, weight, mean, var, dx, *grads, norm.eps, measured)
            _run(norm, kernels.backward_planes, table, norm.features, n)
            return
        sums, products = np.empty((2, kernels.cut(x)[0], norm.features), norm.dtype)
        coefficients = np.empty((4, norm.features), norm.dtype)
        coefficients[0] = mean
        table = (dy, x, n, weight, mean, var, norm.eps, measured, sums, products, *grads, *coefficients, dx)
        _run_phases(norm, kernels.backward_table, table, x)
