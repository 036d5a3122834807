"""Normal deviates by Box and Muller in float64, from Philox's words."""

import numpy as np

from .storage import philox


def deviates(elements, step, seed):
    """Those of elements, by seed and step, with r of each, by which float32's errors are measured."""
    found, radii = [], []
    for element in elements:
        counter = 2**63 + element // 4
        words = philox(
            (counter % 2**32, counter >> 32, step % 2**32, step >> 32), (seed % 2**32, seed >> 32)
        )  # fmt: skip
        first, second = (int(words[k]) for k in ((0, 1) if element % 4 < 2 else (2, 3)))
        first, second = ((word + 2**31) % 2**32 - 2**31 for word in (first | 1, second))  # with a sign
        u = float(np.float32(abs(first))) * 2.0**-31  # rounded to float32, but all else exact
        r = np.sqrt(-2 * np.log(u)) * (1 if first > 0 else -1)
        angle = np.pi / 2 * second * 2.0**-31
        found.append(r * (np.sin(angle) if element % 2 else np.cos(angle)))
        radii.append(abs(r))
    return np.array(found), np.array(radii)
