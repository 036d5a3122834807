"""Internal. The room behind `fastopt.torch`: torch's parameters, their states and state dicts, and a step of them."""

import torch
from torch.autograd.graph import increment_version

from ..errors import install_command

try:
    increment_version([])
except TypeError:  # older ones take a single tensor only
    raise ImportError(
        f"fastopt.torch needs a newer PyTorch than {torch.__version__}: {install_command('torch')}"
    ) from None
