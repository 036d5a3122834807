"""Internal. The rule table: every optimizer, stated once. Public are `fastopt.RULES` and `fastopt.Rule`."""

from __future__ import annotations

from types import MappingProxyType

from . import adam, adaptive, layerwise, momentum
from .base import (
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

#: Every rule by name. It drives the classes, the functional forms, the C table, the Numba kernels, the tests.
RULES = MappingProxyType({rule.name: rule for family in (momentum, adaptive, adam, layerwise) for rule in family.RULES})

__all__ = [
    "COMMON",
    "FIRST_STATE",
    "GRADIENT",
    "MAX_COEFFICIENTS",
    "MAX_COPIES",
    "MAX_HYPER",
    "MAX_SCALARS",
    "OWN",
    "OWN_HYPER",
    "PROLOGUE",
    "REQUIRED",
    "RULES",
    "Hyper",
    "Rule",
    "Stage",
    "State",
    "flag",
    "prologue",
]
