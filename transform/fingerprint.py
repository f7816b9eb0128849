"""A digest of a model's state: what a certificate in memory was counted from."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def state_digest(model: nn.Module) -> str:
    """sha256 over the names, shapes, types and bytes of a model's state, in order of its keys."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
