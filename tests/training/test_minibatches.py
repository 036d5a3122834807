"""Batches against lists of examples that are sliced by hand."""

import json
import pickle

import numpy as np
import pytest

import fastopt
from fastopt.training import minibatches


def oracle(n, size, epoch, seed, shuffle=True, drop_last=False):
    """The examples of each batch of an epoch."""
    order = list(range(n))
    if shuffle:
        order = np.random.default_rng((seed, epoch)).permutation(n).tolist()
    batches = [order[begin : begin + size] for begin in range(0, n, size)]
    return [batch for batch in batches if len(batch) == size or not drop_last]


def epoch_of(batches):
    return [np.asarray(batch).tolist() for batch in batches]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("n", "size"), [(1, 1), (2, 1), (6, 3), (7, 3), (8, 3), (9, 8), (9, 1), (255, 64), (257, 64)])
def test_batches_are_those_of_the_oracle(n, size, shuffle, drop_last):
    batches = minibatches(np.arange(n), batch_size=size, seed=3, shuffle=shuffle, drop_last=drop_last)
    for epoch in range(3):
        assert batches.epoch == epoch
        want = oracle(n, size, epoch, 3, shuffle and size < n, drop_last)
        assert len(batches) == len(want)
        assert epoch_of(batches) == want


def test_each_epoch_has_an_order_of_its_own_by_the_seed():
    def orders(seed):
        batches = minibatches(np.arange(50), batch_size=7, seed=seed)
        return [np.concatenate(list(batches)) for _ in range(3)]

    first, second = orders(0), orders(1)
    assert all((np.sort(order) == np.arange(50)).all() for order in (*first, *second))
    distinct = {tuple(order) for order in (*first, *second, np.arange(50))}
    assert len(distinct) == 7
    np.testing.assert_array_equal(first, orders(0))


@pytest.mark.parametrize("size", [10, 11, None])
def test_the_whole_set_is_the_data_itself(size):
    scipy = pytest.importorskip("scipy.sparse")
    x, sparse = np.zeros((10, 3)), scipy.eye(10, format="csr")
    batches = minibatches(x, sparse, batch_size=size, seed=1)
    ((xb, sb),) = batches
    assert xb.base is x and xb.shape == x.shape and sb is sparse


def test_unshuffled_batches_are_views():
    x = np.arange(10.0)
    for xb in minibatches(x, batch_size=4, shuffle=False):
        assert xb.base is x
    (shuffled, *_) = minibatches(x, batch_size=4)
    assert not np.shares_memory(shuffled, x)


def test_memory_maps_are_read_batch_by_batch(tmp_path):
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (100, 3))
    x[:] = np.arange(300).reshape(100, 3)
    x.flush()
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    want = oracle(100, 32, 0, 5)
    for batch, rows in zip(minibatches(mapped, batch_size=32, seed=5), want, strict=True):
        assert type(batch) is np.ndarray
        np.testing.assert_array_equal(batch, x[rows])


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_csr_matrices(shuffle, index):
    scipy = pytest.importorskip("scipy.sparse")
    table = np.random.default_rng(0).standard_normal((40, 9))
    sparse = scipy.csr_matrix(np.where(table > 1, table, 0))
    assert (np.diff(sparse.indptr) == 0).any()
    dense, labels = sparse.toarray(), np.arange(40)
    triple = (sparse.indptr.astype(index), sparse.indices.astype(index), sparse.data)
    batches = minibatches(sparse, triple, labels, batch_size=6, shuffle=shuffle)
    for (matrix, (indptr, indices, data), rows), want in zip(batches, oracle(40, 6, 0, 0, shuffle), strict=True):
        assert rows.tolist() == want and matrix.format == "csr"
        np.testing.assert_array_equal(matrix.toarray(), dense[want])
        assert indptr.dtype == indices.dtype == index
        np.testing.assert_array_equal(scipy.csr_matrix((data, indices, indptr), (len(want), 9)).toarray(), dense[want])


def test_csr_in_memory_maps(tmp_path):
    np.save(tmp_path / "data.npy", np.arange(6.0))
    data = np.load(tmp_path / "data.npy", mmap_mode="r")
    indptr, indices = np.array([0, 2, 2, 5, 6]), np.array([0, 3, 1, 2, 3, 0])
    got = list(minibatches((indptr, indices, data), batch_size=2, shuffle=False))
    assert [[part.tolist() for part in batch] for batch in got] == [
        [[0, 2, 2], [0, 3], [0.0, 1.0]],
        [[0, 3, 4], [1, 2, 3, 0], [2.0, 3.0, 4.0, 5.0]],
    ]
    assert np.shares_memory(got[1][2], data)


def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    x = torch.arange(20.0).reshape(10, 2)
    batches = minibatches(x, np.arange(10), batch_size=4, seed=2)
    for xb, rows in batches:
        assert isinstance(xb, torch.Tensor) and torch.equal(xb, x[rows.tolist()])
    assert next(iter(minibatches(x, batch_size=None))).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("taken", range(9))
def test_resumed_in_mid_epoch(taken):
    """After any number of batches, also between two epochs, the rest is the same."""

    def stream(batches, epochs):
        while batches.epoch < epochs:
            yield from batches

    whole = [batch.tolist() for batch in stream(minibatches(np.arange(10), batch_size=3, seed=7), 2)]
    first = minibatches(np.arange(10), batch_size=3, seed=7)
    running = stream(first, 2)
    begun = [next(running).tolist() for _ in range(taken)] if taken < 8 else [b.tolist() for b in running]
    saved = json.loads(json.dumps(first.state_dict()))
    resumed = minibatches(np.arange(10), batch_size=3)
    resumed.load_state_dict(saved)
    assert resumed.state_dict() == saved
    assert begun + [batch.tolist() for batch in stream(resumed, 2)] == whole
    again = pickle.loads(pickle.dumps(resumed)) if taken < 8 else resumed
    assert again.state_dict() == resumed.state_dict()


def test_a_training_goes_on_bit_for_bit():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, 4)), rng.standard_normal(50)

    def train(p, opt, batches, steps):
        while steps:
            for xb, yb in batches:
                opt.step(xb.T @ (xb @ p - yb))
                steps -= 1
                if not steps:
                    return

    p = np.zeros(4)
    opt, batches = fastopt.Adam(p, lr=0.01), minibatches(x, y, batch_size=8, seed=1)
    train(p, opt, batches, 11)
    saved = pickle.loads(pickle.dumps((p, opt.state_dict(), batches.state_dict())))
    train(p, opt, batches, 17)
    q = saved[0]
    opt, batches = fastopt.Adam(q, lr=0.01), minibatches(x, y, batch_size=8)
    opt.load_state_dict(saved[1])
    batches.load_state_dict(saved[2])
    train(q, opt, batches, 17)
    assert (p == q).all()


@pytest.mark.parametrize("size", [None, 4, 7])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_share_each_batch(ranks, size):
    data = np.arange(23)
    for epoch in range(2):
        shards = []
        for rank in range(ranks):
            batches = minibatches(data, batch_size=size, seed=4, rank=rank, ranks=ranks)
            for _ in range(epoch):
                list(batches)
            shards.append(epoch_of(batches))
        want = oracle(23, size or 23, epoch, 4, shuffle=size is not None)
        assert [[row for part in parts for row in part] for parts in zip(*shards, strict=True)] == want
        for parts in zip(*shards, strict=True):
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_loop_that_is_left_goes_on():
    batches = minibatches(np.arange(5), batch_size=2, shuffle=False)
    for _ in batches:
        break
    assert (batches.epoch, batches.batch) == (0, 1)
    assert epoch_of(batches) == [[2, 3], [4]]
    assert repr(batches) == "minibatches(5 examples, batch_size=2; epoch 1, batch 0 of 3)"


@pytest.mark.parametrize(
    ("data", "options", "error", "said"),
    [
        ((), {}, TypeError, "data: found nothing"),
        (([1, 2],), {}, TypeError, r"data: found \[1, 2\] of type list, expected an array; np.asarray"),
        ((np.zeros(3), np.zeros(2)), {}, ValueError, r"data\[1\]: found 2 examples, expected 3 as data\[0\] has"),
        ((np.float64(1),), {}, TypeError, "data: found .*float64"),
        ((np.array(1.0),), {}, ValueError, "without dimensions"),
        ((np.zeros((0, 3)),), {}, ValueError, "found 0 examples"),
        (
            ((np.array([0, 2]), np.array([1]), np.array([1.0])),),
            {},
            ValueError,
            "1 indices and 1 values, expected 2 of",
        ),
        (((np.array([0, 2, 1]), np.array([1]), np.array([1.0])),), {}, ValueError, "never fall"),
        (((np.array([0.0, 1]), np.array([1]), np.array([1.0])),), {}, TypeError, "expected integers"),
        ((((), (), ()),), {}, TypeError, r"\(indptr, indices, data\)"),
        ((np.zeros(3),), {"batch_size": 0}, ValueError, "batch_size: found 0, expected an integer >= 1"),
        ((np.zeros(3),), {"batch_size": 1.5}, TypeError, "batch_size: found 1.5"),
        (
            (np.zeros(3),),
            {"batch_size": 4, "drop_last": True},
            ValueError,
            "batch_size: found 4, expected at most the 3",
        ),
        ((np.zeros(3),), {"ranks": 3}, ValueError, "batch_size: found 2 examples, expected at least one for each of 3"),
        ((np.zeros(3),), {"ranks": 4, "batch_size": None}, ValueError, "data: found 3 examples, expected at least one"),
        ((np.zeros(3),), {"rank": 1}, ValueError, "rank: found 1"),
        ((np.zeros(3),), {"seed": -1}, ValueError, "seed: found -1"),
        ((np.zeros(3),), {"shuffle": "no"}, TypeError, "shuffle: found 'no'"),
    ],
)
def test_refusals(data, options, error, said):
    with pytest.raises(error, match=said):
        minibatches(*data, **{"batch_size": 2, **options})


def test_sparse_matrices_of_other_formats_are_refused():
    scipy = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"data: found a coo_matrix, expected CSR: its tocsr\(\) makes one"):
        minibatches(scipy.coo_matrix(np.eye(3)), batch_size=1)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"examples": 11}, ValueError, r"state_dict\['examples'\]: found 11, expected 10, as here"),
        ({"batch_size": 4}, ValueError, r"state_dict\['batch_size'\]: found 4, expected 3, as here"),
        ({"batch": 5}, ValueError, r"state_dict\['batch'\]: found 5, expected an integer >= 0 and <= 4"),
        ({"epoch": -1}, ValueError, r"state_dict\['epoch'\]: found -1"),
        ({"epoch": "0"}, TypeError, r"state_dict\['epoch'\]: found '0'"),
        ({"other": 1}, ValueError, "too many: 'other'"),
    ],
)
def test_wrong_states_change_nothing(change, error, said):
    batches = minibatches(np.arange(10), batch_size=3, seed=7)
    next(iter(batches))
    before = batches.state_dict()
    with pytest.raises(error, match=said):
        batches.load_state_dict({**before, "seed": 9, "batch": 3, **change})
    with pytest.raises(TypeError, match="state_dict: found None"):
        batches.load_state_dict(None)
    assert batches.state_dict() == before
