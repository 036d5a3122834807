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


def adafactor(
    p, grads, lr=1e-2, beta2_decay=-0.8, eps=(None, 1e-3), d=1.0, weight_decay=0.0, maximize=False,
    relative_step=True, scale_parameter=True, precision=2.0**-52,
):  # fmt: skip
    """Shazeer and Stern, 2018, algorithms 4 and 5, with means for sums, and the epsilons of torch.optim.Adafactor."""
    p, least = p.astype("f8"), precision if eps[0] is None else eps[0]
    averages = [np.zeros(())] * 2
    for t, g in enumerate(grads, 1):
        g = g.astype("f8") * (-1 if maximize else 1)
        if p.ndim < 2:
            means = [g**2, np.zeros(())]
        else:
            means = [np.stack([(g**2).mean(axis)], axis) for axis in (p.ndim - 1, p.ndim - 2)]
        averages = [a + t**beta2_decay * (mean - a) for a, mean in zip(averages, means, strict=True)]
        v = averages[0]
        if p.ndim > 1:
            rows, columns = averages
            v = np.einsum("...ik,...kj->...ij", rows, columns) / np.maximum(rows.mean(-2, keepdims=True), least)
        u = g / np.maximum(np.sqrt(v), least)
        rate = min(lr, t**-0.5) if relative_step else lr
        size = max(eps[1], np.linalg.norm(p) / np.sqrt(p.size)) if scale_parameter else 1
        clipped = max(1, np.linalg.norm(u) / np.sqrt(u.size) / d)
        p = p - lr * weight_decay * p - rate * size / clipped * u
    return p, averages[: min(p.ndim, 2)] or averages[:1]
