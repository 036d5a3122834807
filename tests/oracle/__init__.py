# SPDX-License-Identifier: Apache-2.0
"""Every update rule as its paper writes it: the independent reference that the tests compare to.

    p, states = ORACLES["adam"](p0, [g1, g2, ...], lr=1e-2, weight_decay=0.1)

`rules.py` holds the formulas, `harness.py` what all of them share; `rows.py` adds up the gradients of a row.
Nothing is folded, fused or done in place, and nothing is imported from the library under test.
"""

from .harness import ORACLES
from .rules import demon

__all__ = ["ORACLES", "demon"]
