"""A layer's own numbers: how many channels, features or groups it says that it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm


def match_parameters(layer: nn.Module) -> None:
    """Make a layer's numbers agree with the shapes of its parameters; others keep theirs."""
    for kinds, match in _RULES.items():
        if isinstance(layer, kinds):
            match(layer)
            return


def _match_convolution(layer: Any) -> None:
    rows, columns = layer.weight.shape[:2]
    if layer.groups > 1 and layer.groups == layer.in_channels and columns == 1:
        # Depthwise: a channel is a group, and makes as many outputs as before.
        layer.groups = layer.in_channels = rows * layer.in_channels // layer.out_channels
        layer.out_channels = rows
    else:
        layer.out_channels, layer.in_channels = rows, columns * layer.groups


def _match_transposed(layer: Any) -> None:
    rows, columns = layer.weight.shape[:2]
    if layer.groups > 1 and layer.groups == layer.in_channels and columns == 1:
        layer.groups = rows
    layer.in_channels, layer.out_channels = rows, columns * layer.groups


def _match_linear(layer: Any) -> None:
    layer.out_features, layer.in_features = layer.weight.shape


def _match_embedding(layer: Any) -> None:
    layer.num_embeddings, layer.embedding_dim = layer.weight.shape


def _match_prelu(layer: Any) -> None:
    layer.num_parameters = layer.weight.numel()


def _match_norm(layer: Any) -> None:
    held = _held(layer)
    if held is not None:
        match_channels(layer, held.numel())


def match_channels(layer: Any, channels: int) -> None:
    """Tell a norm how many channels it is given; groups of a group norm keep their size."""
    if isinstance(layer, nn.GroupNorm):
        layer.num_groups = layer.num_groups * channels // layer.num_channels
        layer.num_channels = channels
    else:
        layer.num_features = channels


def _held(layer: Any) -> Tensor | None:
    """A parameter or buffer with a value for every channel."""
    values = (getattr(layer, name, None) for name in ("weight", "running_mean"))
    return next((value for value in values if value is not None), None)


# The first class that fits: a transposed convolution is one of the convolutions too.
_RULES: Mapping[Any, Callable[[Any], None]] = {
    _ConvTransposeNd: _match_transposed,
    _ConvNd: _match_convolution,
    nn.Linear: _match_linear,
    nn.Embedding: _match_embedding,
    nn.PReLU: _match_prelu,
    (_NormBase, nn.GroupNorm): _match_norm,
}


@contextmanager
def matching_inputs(model: nn.Module) -> Iterator[dict[nn.Module, int]]:
    """While the model runs, norms without parameters match what they are given.

    Yields:
        The number of channels that each was given, for `match_channels` afterwards.
    """
    found: dict[nn.Module, int] = {}

    def match(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given: Tensor = args[0] if args else kwargs["input"]
        dim = 1
        if isinstance(layer, _InstanceNorm):  # takes single samples, too
            dim = given.dim() - layer._get_no_batch_dim()  # type: ignore[no-untyped-call]
        found[layer] = given.shape[dim]
        match_channels(layer, found[layer])

    norms = (nn.GroupNorm, _BatchNorm, _InstanceNorm)
    bare = [part for part in model.modules() if isinstance(part, norms) and _held(part) is None]
    handles = [part.register_forward_pre_hook(match, with_kwargs=True) for part in bare]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
