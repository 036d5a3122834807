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
        u = float(np.float32(first // 2) + np.float32(0.5)) * 2.0**-31  # rounded to float32, but all else exact
        r = np.sqrt(-2 * np.log(u)) * (-1 if first % 2 else 1)
        angle = np.pi / 4 * ((second | 1) - 2**32 * (second >= 2**31)) * 2.0**-31
        of_cosine = element % 2 == second % 2
        found.append(r * (np.cos(angle) if of_cosine else np.sin(angle)))
        radii.append(abs(r))
    return np.array(found), np.array(radii)
