"""Checks of single arguments."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from fastopt import checks

NO_NUMBERS = [
    None,
    "1",
    b"1",
    bytearray(b"1"),
    True,
    np.True_,
    np.array(True),
    1j,
    np.complex64(1),
    [1.0],
    {},
    ...,
]
NO_NUMBERS += [np.ones(1), np.ones(3), np.array("1"), np.timedelta64(1, "s"), np.array(None)]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_number(value):
    assert checks.as_float(value) is None
    with pytest.raises(TypeError, match=r"^lr: found .*, expected a finite number >= 0$"):
        checks.check_number("lr", value, 0)
    assert checks.as_int(value) is None
    with pytest.raises(TypeError, match=r"^n: found .*, expected an integer >= 1 and <= 9$"):
        checks.check_integer("n", value, 1, 9)


def test_numbers_of_any_kind():
    halves = [0.5, np.float32(0.5), np.array(0.5), ml_dtypes.bfloat16(0.5), Fraction(1, 2), Decimal("0.5")]
    assert [checks.as_float(value) for value in halves] == [0.5] * len(halves)
    assert [checks.as_float(value) for value in (10**400, -(10**400), 3)] == [math.inf, -math.inf, 3.0]
    assert [checks.as_int(value) for value in (3, np.uint8(3), np.array(3), 10**400)] == [3, 3, 3, 10**400]
    assert [checks.as_int(value) for value in (3.0, Fraction(3), np.float64(3))] == [None] * 3


def test_tensors_of_one_element_are_numbers():
    torch = pytest.importorskip("torch")
    assert checks.as_float(torch.tensor([0.5])) == checks.as_float(torch.tensor(0.5)) == 0.5
    assert checks.as_int(torch.tensor(3)) == 3
    for value in (torch.tensor(True), torch.ones(2), torch.tensor(1 + 0j)):
        assert checks.as_float(value) is checks.as_int(value) is None


def test_bounds():
    assert checks.check_number("x", 0, 0, 1) == 0 and checks.check_number("x", 1, 0, 1) == 1
    for value, above in ((-1e-9, False), (1.1, False), (0, True), (math.nan, False)):
        with pytest.raises(ValueError, match=f"^x: found {value}, expected a finite number >=? 0 and <= 1$"):
            checks.check_number("x", value, 0, 1, above=above)
    for value in (math.inf, -math.inf, 10**400):
        with pytest.raises(ValueError, match=r"^x: found .*, expected a finite number$"):
            checks.check_number("x", value)
    assert checks.check_integer("n", 1, 1, 2) == 1 and checks.check_integer("n", 2, 1, 2) == 2
    for value in (0, 3):
        with pytest.raises(ValueError, match=f"^n: found {value}, expected as many as there are$"):
            checks.check_integer("n", value, 1, 2, "as many as there are")


def test_flags():
    assert [checks.check_flag("f", value) for value in (True, np.True_, 1, 1.0)] == [True] * 4
    assert [checks.check_flag("f", value) for value in (False, np.False_, 0, np.array(False))] == [False] * 4
    for value in ("False", None, [], np.array([True])):
        with pytest.raises(TypeError, match=r"^f: found .*, expected True or False$"):
            checks.check_flag("f", value)
    for value in (2, math.nan, -1):
        with pytest.raises(ValueError, match=f"^f: found {value}, expected True or False$"):
            checks.check_flag("f", value)


def test_names():
    assert checks.check_name("rounding", "kahan", ("nearest", "kahan")) == "kahan"
    with pytest.raises(
        ValueError, match=r"^rounding: found 'kahn', expected one of nearest, kahan; did you mean 'kahan'\?$"
    ):
        checks.check_name("rounding", "kahn", ("nearest", "kahan"))
    with pytest.raises(TypeError, match=r"^rounding: found None of type NoneType, expected one of nearest, kahan$"):
        checks.check_name("rounding", None, ("nearest", "kahan"))


def test_did_you_mean():
    known = ("lr", "betas", "eps", "weight_decay")
    meant = {"learning_rate": "lr", "beta": "betas", "epsilon": "eps", "LR": "lr", "weight-decay": "weight_decay"}
    for name, like in meant.items():
        assert checks.did_you_mean(name, known) == f"; did you mean {like!r}?"
    assert checks.did_you_mean("Nadam", ["SGD", "Adam", "NAdam"]) == "; did you mean 'NAdam'?"
    assert checks.did_you_mean("threshold", known) == checks.did_you_mean("learning_rate", ["size"]) == ""


def test_what_is_found_is_shown_in_a_line():
    assert checks.describe("adam") == "'adam'"
    assert checks.describe(10**5000) == f"an integer of {(10**5000).bit_length()} bits"
    for value in (np.zeros((40, 40)), list(range(1000)), "x" * 1000, {i: i for i in range(99)}):
        assert len(checks.describe(value)) <= 120 and "\n" not in checks.describe(value)
