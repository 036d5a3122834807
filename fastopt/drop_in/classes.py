"""Arguments, signatures and docstrings of the classes for torch."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch

from ..binding.options import ARGUMENTS, EXECUTION, MATRIX_ARGUMENTS, TorchArguments
from ..documentation import torch_text

# Arguments of torch's classes beside hyper-parameters: ways of computing, which fastopt takes no notice of.
_EXECUTION = {"foreach": None, "fused": None, "capturable": False, "differentiable": False}


def _sparse_adam() -> TorchArguments:
    """torch's SparseAdam: Adam in the eps-hat form. (What makes it sparse are its gradients, which any class takes.)"""
    adam = TorchArguments.of(ARGUMENTS["Adam"])
    return replace(adam, name="SparseAdam", defaults={**adam.defaults, "eps_hat": True})


#: The arguments of every class of the table.
TORCH_ARGUMENTS = (*map(TorchArguments.of, ARGUMENTS.values()), _sparse_adam())
#: The arguments of every class of whole matrices.
TORCH_MATRIX_ARGUMENTS = tuple(map(TorchArguments.of, MATRIX_ARGUMENTS.values()))


def namespace_of(arguments: TorchArguments) -> dict[str, Any]:
    """The attributes of a class."""
    signature = signature_of(arguments)
    others = [*_EXECUTION, *EXECUTION]
    defaults = {key: p.default for key, p in list(signature.parameters.items())[1:] if key not in others}
    doc = torch_text(arguments, defaults, [name for name in others if name in signature.parameters])
    return {"__doc__": doc, "__signature__": signature, "_arguments": arguments}


def signature_of(arguments: TorchArguments) -> inspect.Signature:
    """Return the signature of torch's class of the same name, extended by keywords that fastopt has beyond it."""
    theirs = getattr(torch.optim, arguments.name, None)
    signature = arguments.signature() if theirs is None else inspect.signature(theirs)
    fixed = ["decoupled_weight_decay"] if arguments.decoupled else []  # torch's flag: there is one decay only
    known = [parameter for name, parameter in signature.parameters.items() if name not in fixed]
    names = [parameter.name for parameter in known] + fixed
    more = {**arguments.defaults, **_EXECUTION, **{key: default for key, (default, _) in EXECUTION.items()}}
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        known + [inspect.Parameter(key, keyword, default=more[key]) for key in more if key not in names]
    )
