"""The models: the right updates, the same bits from thread and process, and what several workers make of them."""

import multiprocessing
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from fastopt.hogwild import Factorization, LinearModel, engine
from fastopt.hogwild.runner import Shard

from .pages import examples, page
from .support import assert_same_bits

scipy_sparse = pytest.importorskip("scipy.sparse")


def text_like(n=3000, features=2000, per_row=20, seed=0):
    """Features as frequent as words are, unit rows, labels of a sparse model with some noise."""
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, features + 1)
    drawn = np.searchsorted(np.cumsum(frequency / frequency.sum()), rng.random((n, per_row))).clip(0, features - 1)
    rows = [np.unique(row) for row in rng.permutation(features)[drawn]]
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    indices = np.concatenate(rows)
    data = 1 + rng.random(len(indices))
    data /= np.sqrt(np.repeat(np.add.reduceat(data**2, indptr[:-1]), np.diff(indptr)))
    X = scipy_sparse.csr_matrix((data.astype("f4"), indices, indptr), shape=(n, features))
    z = X @ rng.standard_normal(features)
    return X, np.where(z + 0.1 * z.std() * rng.standard_normal(n) > 0, 1, -1)


def ratings(n=20_000, rows=300, columns=200, seed=0):
    rng = np.random.default_rng(seed)
    u, v = rng.standard_normal((rows, 4)), rng.standard_normal((columns, 4))
    i = rng.integers(0, rows, n)
    j = np.minimum(rng.zipf(1.3, n) - 1, columns - 1)
    return i, j, ((u[i] * v[j]).sum(axis=1) + 3).astype("f4")


# The losses and rules in float64, from their definitions; the examples in the order that the seed gives.
LOSSES = {
    "hinge": (lambda z, y: max(0.0, 1 - y * z), lambda z, y: -y if y * z < 1 else 0.0),
    "logistic": (lambda z, y: np.logaddexp(0, -y * z), lambda z, y: -y / (1 + np.exp(y * z))),
    "squared": (lambda z, y: (z - y) ** 2 / 2, lambda z, y: z - y),
}


def reference_step(rule, w, s, g, lr):
    if rule == "sgd":
        return w - lr * g, s
    s = s + g**2
    return w - lr * g / (np.sqrt(s) + 1e-10), s


def orders(examples, epochs, seed):
    shard = Shard(examples, 1, 0, seed)
    return [np.concatenate([part.copy() for part in shard.orders()]) for _ in range(epochs)]


@pytest.mark.parametrize("rule", ["sgd", "adagrad", "async_adagrad"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_linear_model_makes_the_updates_that_its_docstring_says(loss, rule):
    X, y = text_like(200, 60, 6)
    model = LinearModel(loss, rule, lr=0.3, l2=0.5, decay=0.8, seed=3).fit(X, y, epochs=2)
    value, slope = LOSSES[loss]
    w, s = np.zeros(60), np.zeros(60)
    degree = np.bincount(X.indices, minlength=60)
    losses = []
    for epoch, order in enumerate(orders(200, 2, 3)):
        total = 0.0
        for n in order:
            at = slice(X.indptr[n], X.indptr[n + 1])
            j, x = X.indices[at], X.data[at].astype(float)
            z = w[j] @ x
            total += value(z, y[n])
            g = slope(z, y[n]) * x + 0.5 / degree[j] * w[j]
            w[j], s[j] = reference_step(rule, w[j], s[j], g, 0.3 * 0.8**epoch)
        losses.append(total / 200)
    assert model.run_.loss == pytest.approx(losses, rel=1e-4)
    np.testing.assert_allclose(model.coef_, w, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rule", ["sgd", "adagrad", "async_adagrad"])
def test_a_factorization_makes_the_updates_that_its_docstring_says(rule):
    i, j, r = ratings(300, 20, 10)
    model = Factorization(3, rule, lr=0.05, l2=0.1, seed=2).fit(i, j, r, epochs=1)
    random = np.random.default_rng(2)
    u = 0.1 * random.standard_normal((i.max() + 1, 3), np.float32).astype(float)
    v = 0.1 * random.standard_normal((j.max() + 1, 3), np.float32).astype(float)
    su, sv, total = np.zeros_like(u), np.zeros_like(v), 0.0
    for n in orders(300, 1, 2)[0]:
        a, b = i[n], j[n]
        error = u[a] @ v[b] + r.mean(dtype=float) - r[n]
        total += error**2 / 2
        gu, gv = error * v[b] + 0.1 * u[a], error * u[a] + 0.1 * v[b]
        u[a], su[a] = reference_step(rule, u[a], su[a], gu, 0.05)
        v[b], sv[b] = reference_step(rule, v[b], sv[b], gv, 0.05)
    assert model.run_.loss[0] == pytest.approx(total / 300, rel=1e-4)
    np.testing.assert_allclose(model.u_, u, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(model.v_, v, rtol=1e-3, atol=1e-4)


def test_one_worker_gives_the_same_bits_thread_or_process_adagrad_or_async():
    X, y = text_like()
    before = multiprocessing.get_start_method()
    coefficients = []
    try:
        for rule, processes, start in (
            ("adagrad", False, before),
            ("adagrad", False, before),
            ("adagrad", True, "fork"),
            ("adagrad", True, "spawn"),
            ("async_adagrad", False, before),
        ):
            multiprocessing.set_start_method(start, force=True)
            model = LinearModel("logistic", rule, l2=0.1).fit(X, y, epochs=2, processes=processes)
            coefficients.append(model.coef_)
    finally:
        multiprocessing.set_start_method(before, force=True)
    for other in coefficients[1:]:
        assert_same_bits([coefficients[0]], [other])


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize("rule", ["sgd", "adagrad", "async_adagrad"])
@pytest.mark.parametrize("hot", [65536, 100])
def test_several_workers_reach_what_one_reaches(rule, hot, processes, monkeypatch):
    """The loss of all examples within 10 %, the share predicted right within 1 %; the weight furthest from one worker's
    is off by at most a quarter of the largest; with copies of all weights, and of some."""
    monkeypatch.setattr(engine, "HOT", hot)
    X, y = text_like()
    model = LinearModel("logistic", rule, lr=0.5 if rule == "sgd" else 0.1, l2=1e-3)

    def fit(workers, processes=False):
        model.fit(X, y, workers=workers, epochs=8, processes=processes)
        return np.logaddexp(0, -y * model.decision_function(X)).mean(), model.score(X, y), model.coef_

    (loss, score, coef), (loss4, score4, coef4) = fit(1), fit(4, processes)
    assert np.isfinite(coef4).all()
    assert loss4 == pytest.approx(loss, rel=0.1)
    assert score4 == pytest.approx(score, abs=0.01)
    assert score > 0.8
    assert abs(coef4 - coef).max() < 0.25 * abs(coef).max()


@pytest.mark.parametrize("rule", ["sgd", "adagrad", "async_adagrad"])
def test_several_workers_factorize_as_well_as_one(rule):
    i, j, r = ratings()
    model = Factorization(8, rule, lr=0.05 if rule == "sgd" else 0.1)
    one, many = model.fit(i, j, r, epochs=15).score(i, j, r), model.fit(i, j, r, epochs=15, workers=4).score(i, j, r)
    assert one > 0.9
    assert many > one - 0.05
    assert np.isfinite(model.u_).all()


def test_every_form_of_matrix():
    X, y = text_like(300, 50, 5)
    want = LinearModel().fit(X, y, epochs=1)
    wide = X.copy()
    wide.indices, wide.indptr = X.indices.astype("i8"), X.indptr.astype("i8")
    arrays = X.indptr, X.indices, X.data
    others = [wide, X.astype("f8"), arrays, scipy_sparse.csr_array(X), X.tocsc(), X.tocoo(), X.todok(), X.toarray()]
    others += [(X.indptr.astype("u4"), X.indices.astype("i2"), X.data), X.toarray().tolist()]
    for other in others:
        model = LinearModel().fit(other, y.astype("f8"), epochs=1)
        assert_same_bits([model.coef_], [want.coef_])
        assert np.array_equal(model.predict(other), want.predict(X))
    z = want.decision_function(X)
    np.testing.assert_allclose(z, X @ want.coef_, rtol=1e-4, atol=1e-6)
    assert np.array_equal(want.predict(X), np.where(z > 0, 1, -1))
    assert want.score(X, y) == np.mean(want.predict(X) == y)
    squared = LinearModel("squared", lr=0.1).fit(X, z, epochs=20)
    assert squared.score(X, z) == pytest.approx(1 - np.mean((squared.predict(X) - z) ** 2) / np.var(z), rel=1e-5)
    empty = scipy_sparse.csr_matrix((3, 4), dtype="f4")
    assert not LinearModel().fit(empty, [1, 1, -1], workers=2).coef_.any()


@pytest.mark.parametrize("hot", [0, 7, 50])
def test_rearranged_rows_are_the_same_rows(hot):
    X, _ = text_like(200, 50, 5)
    rank = np.random.default_rng(0).permutation(50).astype("u4")
    columns, values, splits = engine.arrange(X.indptr.astype("i8"), X.indices.view("u4"), X.data, rank, hot)
    for n in range(200):
        at = slice(X.indptr[n], X.indptr[n + 1])
        want = dict(zip(rank[X.indices[at]], X.data[at], strict=True))
        assert dict(zip(columns[at], values[at], strict=True)) == want
        assert (columns[at.start : splits[n]] < hot).all()
        assert (columns[splits[n] : at.stop] >= hot).all()


def test_large_margins_do_not_overflow():
    X = scipy_sparse.csr_matrix(np.full((4, 1), 1e4, "f4"))
    model = LinearModel("logistic", lr=1).fit(X, [1, -1, 1, -1], epochs=3)
    assert np.isfinite(model.run_.loss).all()
    assert np.isfinite(model.coef_).all()


def test_bad_input():
    X, y = text_like(50, 20, 4)
    fit = LinearModel().fit
    nan = X.copy()
    nan.data[3] = np.nan
    for call, error, message in [
        (
            lambda: LinearModel("hinges"),
            ValueError,
            "loss: found 'hinges', expected one of 'hinge', 'logistic', 'squared'",
        ),
        (lambda: LinearModel(rule="adam"), ValueError, "rule: found 'adam', expected one of 'sgd', 'adagrad'"),
        (lambda: LinearModel(lr=0), ValueError, "lr: found 0"),
        (lambda: LinearModel(l2=-1), ValueError, "l2: found -1, expected a finite number >= 0"),
        (lambda: LinearModel(decay=2), ValueError, "decay: found 2"),
        (lambda: LinearModel("hinges"), ValueError, "did you mean 'hinge'"),
        (
            lambda: fit(X.toarray()[0], y),
            TypeError,
            r"X: found ndarray of dtype float32, shape \(20,\), expected a CSR",
        ),
        (lambda: fit([[1, 2], [3]], y), TypeError, "X: found list of dtype object"),
        (lambda: fit([["a"]], y), TypeError, "X: found list of dtype <U1"),
        (lambda: fit(X, y, features=21), ValueError, "features: found 21, expected 20 as X has"),
        (lambda: fit((X.indptr, X.indices, X.data), y, features=3), ValueError, "X: found index .* below 3"),
        (lambda: fit((X.indptr, X.indices, X.data), y, features="3"), TypeError, "features: found '3'"),
        (lambda: LinearModel().set_params(l_2=1), ValueError, "set_params: found 'l_2', .*; did you mean 'l2'"),
        (lambda: LinearModel().set_params(lr=-1), ValueError, "lr: found -1"),
        (lambda: Factorization(2).fit([0, 1], [0, 1], [1, 2], shape=3), TypeError, "shape: found 3"),
        (lambda: Factorization(2).fit([0, 1], [0, 1], [1, 2], shape=(2, 1)), ValueError, "j: found index 1"),
        (lambda: fit(nan, y), ValueError, "X: found NaN or infinity"),
        (lambda: fit((X.indptr, X.indices - 1, X.data), y), ValueError, "X: found column index -1"),
        (lambda: fit((X.indptr, X.indices.astype("f4"), X.data), y), TypeError, "X: found indices of dtype float32"),
        (lambda: fit((X.indptr, X.indices, X.data[1:]), y), TypeError, "X: found data of dtype float32"),
        (lambda: fit((X.indptr[::-1], X.indices, X.data), y), ValueError, "X: found an indptr that is not"),
        (lambda: fit(X, y[1:]), ValueError, r"y: found dtype int64, shape \(49,\), expected 50 real numbers"),
        (
            lambda: fit(X, y > 0),
            ValueError,
            r"y: found values such as \[0.0, 1.0\], expected -1 and 1 for the hinge loss",
        ),
        (lambda: fit(X, y * np.inf), ValueError, "y: found NaN or infinity"),
        (lambda: fit(X, y, workers=0), ValueError, "workers: found 0"),
        (lambda: LinearModel().predict(X), ValueError, "has not been fitted"),
        (lambda: fit(X[:, :5], y).predict(X), ValueError, "X: found 20 features, expected at most the 5 of the fit"),
        (lambda: Factorization(0), ValueError, "rank: found 0"),
        (lambda: Factorization(2).fit([0, -1], [0, 1], [1, 2]), ValueError, "i: found index -1"),
        (
            lambda: Factorization(2).fit([0, 1], [0], [1, 2]),
            ValueError,
            "j: found 1 indices, expected as many as in i, 2",
        ),
        (lambda: Factorization(2).fit([0, 1], [0, 1.5], [1, 2]), TypeError, "j: found dtype float64"),
        (lambda: Factorization(2).fit([0, 1], [0, 1], [1]), ValueError, "r: found dtype int64"),
        (lambda: Factorization(2).fit([0], [0], [1]).predict([0], [3]), ValueError, "j: found index 3"),
        (lambda: Factorization(2).predict([0], [3]), ValueError, "has not been fitted"),
    ]:
        with pytest.raises(error, match=message):
            call()


LIMITED = """
import resource, numpy as np
from fastopt.hogwild import Factorization, LinearModel
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
far = np.array([0, 2**31 - 1])
for call in (
    lambda: LinearModel().fit((np.array([0, 2]), far, np.ones(2)), [1]),
    lambda: Factorization(4).fit(far, [0, 1], [1.0, 2.0]),
    lambda: Factorization(4).fit([0, 1], far, [1.0, 2.0]),
):
    try:
        call()
    except ValueError as error:
        print(error)
"""


def test_an_index_that_is_far_beyond_the_others_is_told_before_memory_is_taken():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    for line, name, argument in zip(said, ("X", "i", "j"), ("features", "shape[0]", "shape[1]"), strict=True):
        assert line.startswith(f"{name}: found index 2147483647 among 2 entries, expected indices below 16777216")
        assert f"say {argument}" in line


def test_columns_that_a_matrix_only_declares_are_told_before_memory_is_taken():
    scipy_sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    wide = scipy_sparse.csr_matrix((np.ones(2), [0, 1], [0, 1, 2]), shape=(2, 2**31 - 1))
    with pytest.raises(
        ValueError, match=r"X: found 2147483647 columns and 2 entries, .* at most 16777216 .* say features"
    ):
        LinearModel().fit(wide, [1, -1])
    wide = scipy_sparse.csr_matrix((np.ones(2), [0, 1], [0, 1, 2]), shape=(2, 2**24 + 1))
    assert LinearModel().fit(wide, [1, -1], features=2**24 + 1).coef_.any()


def test_sizes_may_be_said():
    arrays = np.array([0, 1, 2]), np.array([0, 1]), np.ones(2)
    model = LinearModel().fit(arrays, [1, -1], features=7)
    assert model.coef_.shape == (7,)
    assert model.n_features_in_ == 7
    far = arrays[0], np.array([0, 2**24]), arrays[2]
    assert LinearModel().fit(far, [1, -1], features=2**24 + 1).coef_.any()
    model = Factorization(3).fit([0, 1], [1, 0], [1.0, 2.0], shape=(5, 4))
    assert model.u_.shape == (5, 3)
    assert model.v_.shape == (4, 3)


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_diverges_says_so_in_its_epoch(workers, processes):
    """Each epoch multiplies the weight's distance by -99: it passes what float32 has in the 10th at the latest."""
    X = scipy_sparse.csr_matrix(np.full((2, 1), 10.0, "f4"))
    model = LinearModel("squared", lr=1, decay=1).fit(X, [1, 1], epochs=1)
    before, run, told = model.coef_, model.run_, []
    with pytest.raises(FloatingPointError, match=r"diverged in epoch (\d+): .* smaller lr") as refused:
        model.fit(
            X, [1, 1], epochs=100, workers=workers, processes=processes, progress=lambda *event: told.append(event)
        )
    assert model.coef_ is before
    assert model.run_ is run
    assert int(re.search(r"epoch (\d+)", str(refused.value))[1]) == len(told) < 20
    assert np.isfinite([loss for _, loss, _ in told[:-1]]).all()


def test_a_factorization_that_diverges_says_so():
    i, j, r = ratings(2000)
    with pytest.raises(FloatingPointError, match="diverged in epoch"):
        Factorization(4, "sgd", lr=100.0).fit(i, j, r)
    assert not hasattr(Factorization(4), "u_")


def test_what_the_last_update_makes_infinite_is_seen():
    X = scipy_sparse.csr_matrix(np.full((1, 1), 1e30, "f4"))
    with pytest.raises(FloatingPointError, match="diverged in epoch 1"):
        LinearModel("squared", lr=1e20).fit(X, [1], epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [False, True])
def test_compiling_is_no_part_of_an_epoch(tmp_path, processes):
    code = f"""
import numpy as np, time
from fastopt.hogwild import LinearModel, Factorization
if __name__ == "__main__":
    X, y = (np.arange(9), np.zeros(8, int), np.ones(8)), np.ones(8)
    begin = time.perf_counter()
    seconds = LinearModel().fit(X, y, epochs=2, processes={processes}).run_.seconds
    seconds += Factorization(2).fit([0, 1], [1, 0], [1, 2], epochs=2, processes={processes}).run_.seconds
    print(time.perf_counter() - begin, *seconds)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    whole, *seconds = map(float, done.stdout.split())
    assert max(seconds) < 0.1 * whole


def test_parameters_as_scikit_learn_wants_them():
    lr = np.float64(0.25)
    model = LinearModel("logistic", lr=lr)
    assert model.get_params() == {
        "loss": "logistic", "rule": "sgd", "lr": 0.25, "decay": 0.9, "l2": 0.0, "seed": 0,
    }  # fmt: skip
    assert model.get_params()["lr"] is lr
    assert model.set_params(l2=0.5, loss="hinge") is model
    assert (model.l2, model.loss) == (0.5, "hinge")
    with pytest.raises(ValueError, match="decay"):
        model.set_params(l2=0.1, decay=3)
    assert model.l2 == 0.5
    assert (
        eval(repr(model).replace("np.", "np."), {"LinearModel": LinearModel, "np": np}).get_params()
        == model.get_params()
    )
    model.lr = -1
    with pytest.raises(ValueError, match="lr: found -1"):
        model.fit(*text_like(10, 5, 2))
    assert Factorization(3).get_params()["rank"] == 3


def test_scikit_learns_tools():
    sklearn = pytest.importorskip("sklearn")
    from sklearn.base import is_classifier, is_regressor
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler

    X, y = text_like(600, 50, 5)
    model = LinearModel(l2=1e-3)
    assert is_classifier(model)
    assert is_regressor(LinearModel("squared"))
    copy = sklearn.base.clone(model.fit(X, y))
    assert copy.get_params() == model.get_params()
    assert not hasattr(copy, "coef_")
    assert sklearn.base.clone(Factorization(2)).rank == 2
    search = GridSearchCV(model, {"lr": [0.1, 0.5], "loss": ["hinge", "logistic"]}, cv=3).fit(X, y, epochs=2)
    assert search.best_score_ > 0.8
    assert search.best_estimator_.run_.loss
    assert cross_val_score(model, X, y, scoring="roc_auc", cv=2).min() > 0.8
    assert cross_val_score(model, X.toarray(), y, scoring="accuracy", cv=2).min() > 0.8
    assert make_pipeline(MaxAbsScaler(), model).fit(X, y).score(X, y) > 0.8
    z = X @ model.coef_
    assert cross_val_score(LinearModel("squared", lr=0.1), X, z, scoring="r2", cv=2).min() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("code", "_"), examples(page("fastopt/hogwild")), ids=["models", "kernel"])
def test_the_examples_of_the_page_learn(code, _, tmp_path):
    """The examples run as a user would run them: each a script of its own."""
    script = tmp_path / "example.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    first, *_ = done.stdout.splitlines()
    losses = [float(number) for number in re.findall(r"[\d.e-]+", first.split(")")[0])]
    assert losses[-1] < 0.7 * losses[0]
