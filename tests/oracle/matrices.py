# SPDX-License-Identifier: Apache-2.0
"""The rules of whole matrices as their papers write them, in float64, nothing in place."""

import numpy as np


def muon(
    p, grads, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True, ns_coefficients=(3.4445, -4.775, 2.0315),
    eps=1e-7, ns_steps=5, adjust_lr_fn=None,
):  # fmt: skip
    """Jordan et al., 2024, with the averages and the decay of torch.optim.Muon: the polynomial of singular values."""
    p = p.astype("f8")
    b = np.zeros_like(p)
    scale = (
        0.2 * np.sqrt(max(p.shape)) if adjust_lr_fn == "match_rms_adamw" else np.sqrt(max(1, p.shape[0] / p.shape[1]))
    )
    for g in grads:
        g = g.astype("f8")
        b = momentum * b + (1 - momentum) * g
        u, s, v = np.linalg.svd(momentum * b + (1 - momentum) * g if nesterov else b, full_matrices=False)
        s = s / max(np.sqrt((s**2).sum()), eps)
        for _ in range(ns_steps):
            s = np.polynomial.polynomial.polyval(
                s, [0, ns_coefficients[0], 0, ns_coefficients[1], 0, ns_coefficients[2]]
            )
        p = p - lr * weight_decay * p - lr * scale * (u * s) @ v
    return p, b
