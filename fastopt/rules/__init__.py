"""Internal. The rule table: every optimizer, stated once. Public are `fastopt.RULES` and `fastopt.Rule`."""

from __future__ import annotations

from types import MappingProxyType

from . import adam, adaptive, momentum
from .base import COMMON, MAX_COPIES, OWN, PROLOGUE, REQUIRED, Hyper, Rule, flag, prologue

#: Every rule by name. It drives the classes, the functional forms, the C table, the Numba kernels, the tests.
RULES = MappingProxyType({rule.name: rule for family in (momentum, adaptive, adam) for rule in family.RULES})

__all__ = ["COMMON", "MAX_COPIES", "OWN", "PROLOGUE", "REQUIRED", "RULES", "Hyper", "Rule", "flag", "prologue"]
