"""The kept share by the counting of Salehinejad and Valaee: output filters, and nothing else.

H. Salehinejad and S. Valaee, "Pruning of Convolutional Neural Networks Using Ising Energy Model",
ICASSP 2021, by their code: a convolution counts with all its weights times the share of its output
filters, its batch norm likewise, a linear layer by the share of its inputs, biases of linear layers
as a whole. Input slices of filters that stay are counted though nothing reads them any more: so R
is neither a share of parameters nor of multiply-accumulates, both of which are smaller.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from energy_model.errors import PreconditionError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def kept_share(original: nn.Module, result: nn.Module) -> float:
    """R: the share of the parameters that is kept by the authors' counting, from 0 to 1.

    Args:
        original: The network as it was.
        result: What is left of it, its layers under the same names; one that is missing keeps none.

    Raises:
        PreconditionError: A layer with parameters is none that they count, or it has grown.
    """
    left = dict(result.named_modules())
    total = kept = 0.0
    for path, layer in original.named_modules():
        if any(True for _ in layer.parameters(recurse=False)):
            whole, own = _counted(path, layer, left.get(path))
            total, kept = total + whole, kept + own
    if not total:
        raise PreconditionError("the network has no parameters", where="kept share")
    return kept / total


def _counted(path: str, layer: nn.Module, left: nn.Module | None) -> tuple[int, float]:
    """Parameters of a layer, and how many of them count as kept."""
    whole = sum(p.numel() for p in layer.parameters(recurse=False))
    before = _width(path, layer)
    after = 0 if left is None else _width(path, left)
    if after > before:
        raise PreconditionError(
            f"has {after} channels that count, the original has {before}",
            where=path,
            remedy="Compare a result with the network that it was made from.",
        )
    fixed = layer.bias.numel() if isinstance(layer, nn.Linear) and layer.bias is not None else 0
    fixed = 0 if left is None else fixed
    return whole, fixed + (whole - fixed) * after / before


def _width(path: str, layer: nn.Module) -> int:
    """Filters of a convolution, features of a batch norm, inputs of a linear layer."""
    if isinstance(layer, _CONVOLUTIONS):
        return layer.weight.shape[0]
    if isinstance(layer, _BatchNorm):
        return layer.num_features
    if isinstance(layer, nn.Linear):
        return layer.weight.shape[1]
    raise PreconditionError(
        f"{type(layer).__name__} has parameters, and the authors count none",
        where=path,
        remedy="They count convolutions, batch norms and linear layers.",
    )
