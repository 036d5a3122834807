"""The palette: contrast on light and dark pages, and distances as the colour-blind see them."""

import itertools

import numpy as np
import pytest

from fastopt import palette
from fastopt.rules import RULES

# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
SEEN_BY = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour):
    """The linear RGB of a hexadecimal colour."""
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def oklab(rgb):
    """Ottosson's space, in which distances are those that people see."""
    cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    mixed = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.cbrt(np.clip(rgb, 0, 1) @ np.transpose(cones)) @ np.transpose(mixed)


@pytest.mark.parametrize("page", ["#ffffff", "#0d1117"])
def test_colours_are_readable(page):
    for colour in (*palette.COLOURS, palette.GREY):
        light = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) + 0.05 for c in (colour, page))
        assert light[1] / light[0] >= 2.9, colour


@pytest.mark.parametrize("eyes", SEEN_BY)
def test_colours_are_told_apart(eyes):
    seen = {c: oklab(np.asarray(SEEN_BY[eyes]) @ linear(c)) for c in (*palette.COLOURS, palette.GREY)}
    least = {pair: float(np.linalg.norm(seen[pair[0]] - seen[pair[1]])) for pair in itertools.combinations(seen, 2)}
    assert min(least.values()) >= 0.065, min(least, key=least.get)


def test_each_rule_has_a_look_of_its_own():
    looks = {name: (look.colour, str(look.dashes)) for name in RULES for look in [palette.rule_look(name)]}
    assert len(set(looks.values())) == len(looks)
    assert palette.rule_look("a rule to come") == palette.rule_look("a rule to come")
