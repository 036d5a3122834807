"""Internal. The rule table: every optimizer, stated once. Public are `fastopt.RULES` and `fastopt.Rule`."""

from __future__ import annotations

from types import MappingProxyType

from . import adam, adaptive, delayed, factored, layerwise, matrix, momentum
from .base import (
    AT_PARAMETER,
    COMMON,
    FIRST_STATE,
    GRADIENT,
    MAX_COEFFICIENTS,
    MAX_COPIES,
    MAX_HYPER,
    MAX_SCALARS,
    OWN,
    OWN_HYPER,
    PROLOGUE,
    REQUIRED,
    Hyper,
    Rule,
    Stage,
    State,
    flag,
    prologue,
)
from .factored import FactoredRule
from .matrix import Library, LibraryRule, MatrixRule

#: Every rule by name. It drives the classes, the functional forms, the C table, the Numba kernels, the tests.
RULES = MappingProxyType(
    {rule.name: rule for family in (momentum, adaptive, adam, layerwise, delayed) for rule in family.RULES}
)
#: Every rule of whole tensors by name, whose ends are rules of the table, with operations of a library between them.
MATRIX_RULES: MappingProxyType[str, LibraryRule] = MappingProxyType(
    {rule.name: rule for family in (matrix, factored) for rule in family.RULES}
)
#: All of both.
EVERY_RULE: MappingProxyType[str, Rule] = MappingProxyType({**RULES, **MATRIX_RULES})

__all__ = [
    "AT_PARAMETER",
    "COMMON",
    "EVERY_RULE",
    "FIRST_STATE",
    "GRADIENT",
    "MATRIX_RULES",
    "MAX_COEFFICIENTS",
    "MAX_COPIES",
    "MAX_HYPER",
    "MAX_SCALARS",
    "OWN",
    "OWN_HYPER",
    "PROLOGUE",
    "REQUIRED",
    "RULES",
    "FactoredRule",
    "Hyper",
    "Library",
    "LibraryRule",
    "MatrixRule",
    "Rule",
    "Stage",
    "State",
    "flag",
    "prologue",
]
