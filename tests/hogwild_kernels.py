"""Kernels for the tests of fastopt.hogwild, here so that spawned processes find them soon."""

import multiprocessing
import os
import signal
import threading
import time

import numpy as np
from numba import njit

from fastopt.hogwild import async_adagrad
from fastopt.numba import adagrad


@njit(nogil=True)
def least_squares(order, lr, x, y, w):
    """For w: |x w - y|^2/2, one row at a time."""
    loss = 0.0
    for n in order:
        error = -y[n]
        for k in range(w.size):
            error += x[n, k] * w[k]
        loss += error * error / 2
        for k in range(w.size):
            w[k] -= lr * error * x[n, k]
    return loss


def count(order, lr, seen):
    for n in order:
        seen[n] += 1
    return float(len(order))


def second():
    """Return whether this is the second worker, thread or process."""
    names = (threading.current_thread().name, multiprocessing.current_process().name)
    return "hogwild-1" in names


def fails(order, lr, w):
    w += 1
    if second():
        raise KeyError("what the kernel raised")
    return 0.0


class Stubborn(Exception):
    def __init__(self, one, two):
        super().__init__(one)


def fails_unpicklably(order, lr, w):
    raise Stubborn("one", "two")


def is_killed(order, lr, w):
    w += 1
    if second() and w[0] > 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def is_killed_as_a_parent(order, lr, w):
    """Its child keeps all that it had open."""
    if second():
        child = os.fork()
        if child == 0:
            time.sleep(40)
            os._exit(0)
        w[0] = child
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def leaves(order, lr, w):
    if second():
        os._exit(3)
    time.sleep(60)  # the others are not waited for
    return 0.0


def slow(order, lr, w):
    w += 1
    time.sleep(0.02)
    return 0.0


@njit(nogil=True)
def hammer(p, shared_sum, gradients, steps, lr):
    """Each thread has its own p, so that its steps can be told, and all add to one accumulator."""
    c = adagrad.fold(np.float32, 1, lr)
    longest = np.float32(0)
    for t in range(steps):
        before = p[0]
        async_adagrad(p, shared_sum, 0, gradients[t % gradients.size], c)
        longest = max(longest, abs(p[0] - before))
        p[0] = 0  # so that the difference is exact
    return longest


@njit
def steps_of(form, p, s, grads, c):
    for t in range(grads.shape[0]):
        for i in range(p.size):
            if form:
                async_adagrad(p, s, i, grads[t, i], c)
            else:
                p[i], s[i] = adagrad.update(p[i], grads[t, i], s[i], c)
