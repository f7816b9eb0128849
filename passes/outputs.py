"""What a model returns, as far as losses and energies read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def first_tensor(outputs: Any) -> Tensor | None:
    """The tensor that holds the logits: the output, or the first of several; `None` if it is none.

    Args:
        outputs: What a model returns: a tensor, a sequence or a mapping.
    """
    if isinstance(outputs, Mapping):
        outputs = next(iter(outputs.values()), None)
    elif isinstance(outputs, tuple | list):
        outputs = outputs[0] if outputs else None
    return outputs if isinstance(outputs, Tensor) else None
