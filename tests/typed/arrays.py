"""A program for type checkers: they find what is wrong in the lines that say so, and nothing in the others."""

from array import array
from collections import OrderedDict
from pathlib import Path

import numpy as np

import fastopt
from fastopt import functional

w, b = np.ones((3, 2), np.float32), np.zeros(2, np.float32)
grads = [np.ones_like(w), np.ones_like(b)]

opt = fastopt.AdamW([w, b], lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-2, amsgrad=True, state_dtype="bfloat16")
opt.step(grads, max_norm=1.0)
opt.bind(grads).step(grad_scale=0.5)
norm: float | None = opt.last_grad_norm
opt.param_groups[0]["lr"] = 1e-4
opt.load_state_dict(opt.state_dict())

fastopt.SGD(w, 0.1, momentum=fastopt.Demon(100), nesterov=True)
fastopt.Adam({"w": w, "b": b}, lr=lambda t: 0.1 / t, betas=(np.float32(0.9), lambda t: 0.999))
fastopt.Adam(OrderedDict(w=w).values(), lr=np.array(0.1), state_dir=Path("states"), state_memory=1 << 20)
fastopt.RMSprop([{"params": [w], "lr": 0.1}, {"params": b}], backend="native", threads=2, ema_decay=0.99)
fastopt.AggMo(w, betas=(0.0, 0.9, 0.99, 0.999))
fastopt.QHM(array("f", [0.5]), lr=1)
functional.adam(w, grads[0], np.zeros_like(w), np.zeros_like(w), step=1, lr=0.1)
functional.sgd([w, b], [fastopt.RowSparse([0], w[:1]), grads[1]], step=1)
with fastopt.use_backend("auto"):
    fastopt.clip_grad_norm_(grads, 1.0)

fastopt.AdamW([w, b], learning_rate=0.1)  # wrong: a keyword that it does not have
fastopt.AdamW([w, b], lr="0.1")  # wrong: text
fastopt.AdamW([w, b], 0.1, (0.9, 0.999))  # wrong: by keyword only
fastopt.AdamW([w, b], decoupled_weight_decay=0.1)  # wrong: its weight_decay is that
fastopt.Adam([w, b], betas=(0.9,))  # wrong: not a pair
fastopt.Adam([w, b], rounding="up")  # wrong: no such rounding
fastopt.Adam("w")  # wrong: no arrays
fastopt.Adam()  # wrong: no parameters
fastopt.QHM(w)  # wrong: no lr
fastopt.Adem(w)  # wrong: no such class
opt.bind()  # wrong: no gradients
opt.setp(grads)  # wrong: no such method
functional.adam(w, grads[0], np.zeros_like(w), step=1)  # wrong: a state too few
functional.adam(w, grads[0], np.zeros_like(w), np.zeros_like(w))  # wrong: which step?
functional.sgd(w, grads[0], step=1, lr=lambda t: 0.1)  # wrong: a schedule
functional.adem(w, grads[0], step=1)  # wrong: no such rule
