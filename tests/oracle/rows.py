"""The gradient of each row that lookups name: their sum, as it is defined."""

import numpy as np


def sum_in_groups(terms):
    """Add terms in groups of 32, one after the other, then the groups' sums in the same way, until one is left."""
    while len(terms) > 1:
        sums = []
        for first in range(0, len(terms), 32):
            total = np.array(terms[first])
            for term in terms[first + 1 : first + 32]:
                total = total + term
            sums.append(total)
        terms = sums
    return np.array(terms[0])


def sum_rows(indices, values):
    """Return each row that is named, with the sum of its values."""
    lookups = {}
    for row, value in zip(np.asarray(indices).tolist(), values, strict=True):
        lookups.setdefault(row, []).append(value)
    return {row: sum_in_groups(own) for row, own in sorted(lookups.items())}
