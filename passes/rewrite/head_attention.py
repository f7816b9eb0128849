"""Attention whose heads need not fill its width, so that single heads can be removed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import repeat
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from energy_model.errors import ArgumentError, UnsupportedLayer
from passes.storage.modules import storable
from passes.structure.products import heads
from passes.structure.rules import LAYERS

_SINGLE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


@storable
class HeadAttention(nn.Module):
    """What `nn.MultiheadAttention` computes, with any number of heads of any size.

    Vaswani et al., NeurIPS 2017, section 3.2.2. The parameters have the names that they have there:
    `in_proj_weight` `(3 * num_heads * head_dim, embed_dim)`, or one weight each for `q`, `k`, `v`
    where keys or values have another width, and `out_proj`. Bias for keys and values, zero
    attention and nested tensors are not supported.

    Args:
        embed_dim: Width of the queries and of the output.
        num_heads: Number of heads.
        head_dim: Width of each.
        dropout: Share of the attention weights that are dropped in training.
        bias: Whether the projections have a bias.
        kdim: Width of the keys.
        vdim: Width of the values.
        batch_first: Whether tensors are `(N, L, E)`, not `(L, N, E)`.
    """

    # The tracer keeps it as one layer, as it does with those of torch.
    traced_as_layer: ClassVar[bool] = True
    bias_k: ClassVar[None] = None
    add_zero_attn: ClassVar[bool] = False

    in_proj_weight: nn.Parameter | None
    q_proj_weight: nn.Parameter | None
    k_proj_weight: nn.Parameter | None
    v_proj_weight: nn.Parameter | None
    in_proj_bias: nn.Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        head_dim: int,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim, self.head_dim = embed_dim, head_dim
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.dropout, self.batch_first = dropout, batch_first
        rows = num_heads * head_dim
        fused = self.kdim == self.vdim == embed_dim
        self.register_parameter("in_proj_weight", _matrix(3 * rows, embed_dim) if fused else None)
        for name, width in zip(_SINGLE, (embed_dim, self.kdim, self.vdim), strict=True):
            self.register_parameter(name, None if fused else _matrix(rows, width))
        bias_of_all = nn.Parameter(torch.zeros(3 * rows)) if bias else None
        self.register_parameter("in_proj_bias", bias_of_all)
        self.out_proj = NonDynamicallyQuantizableLinear(rows, embed_dim, bias=bias)
        # Where a gate sets what single heads computed to zero.
        self.gate: nn.Module | None = None

    @classmethod
    def of(cls, layer: nn.MultiheadAttention, where: str = "") -> HeadAttention:
        """The same attention with the same parameters, which both layers then hold.

        Args:
            layer: The layer; it is not changed.
            where: Its path, for errors.

        Raises:
            UnsupportedLayer: It has a key and a value of its own, or attends to zeros.
        """
        if layer.bias_k is not None or layer.bias_v is not None or layer.add_zero_attn:
            raise UnsupportedLayer(
                "attention with add_bias_kv or add_zero_attn cannot lose heads",
                where=where or type(layer).__name__,
                remedy="Keep all its heads, or build the layer without these options.",
            )
        with torch.device("meta"):
            found = cls(
                layer.embed_dim,
                layer.num_heads,
                layer.head_dim,
                dropout=layer.dropout,
                bias=layer.in_proj_bias is not None,
                kdim=layer.kdim,
                vdim=layer.vdim,
                batch_first=layer.batch_first,
            )
        for name in ("in_proj_weight", *_SINGLE, "in_proj_bias"):
            found.register_parameter(name, getattr(layer, name))
        found.out_proj = layer.out_proj
        found.training = layer.training
        return found

    @property
    def num_heads(self) -> int:
        """Number of heads, which the projections tell."""
        rows = 0 if self.in_proj_weight is None else self.in_proj_weight.shape[0] // 3
        if self.q_proj_weight is not None:
            rows = self.q_proj_weight.shape[0]
        return int(rows // self.head_dim)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; see `nn.MultiheadAttention.forward`.

        Args:
            query: `(L, N, E)`, `(N, L, E)` with `batch_first`, or `(L, E)`.
            key: Likewise, of length `S` and width `kdim`.
            value: Likewise, of length `S` and width `vdim`.
            key_padding_mask: `(N, S)` or `(S,)`: true, or minus infinity, is not attended to.
            need_weights: Whether to return the attention weights.
            attn_mask: `(L, S)`, or `(N * num_heads, L, S)`.
            average_attn_weights: Average the returned weights over heads.
            is_causal: A hint that `attn_mask` is the causal mask.

        Returns:
            The output, shaped as the query, and the weights `(N, L, S)`, `(N, num_heads, L, S)`
            if they are not averaged, or `None`; without `N` for unbatched inputs.

        Raises:
            ArgumentError: A mask is missing, of a wrong shape or of a wrong type.
            UnsupportedLayer: A nested tensor.
        """
        if query.is_nested or key.is_nested or value.is_nested:
            raise UnsupportedLayer("nested tensors are not supported", where=type(self).__name__)
        if is_causal and attn_mask is None:
            raise ArgumentError("is_causal is only a hint", where="attn_mask", remedy="Pass one.")
        batched = query.dim() == 3
        q, k, v = self._projected(*self._batch_first(query, key, value))
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else self._mask(q, k, attn_mask, key_padding_mask, batched)
        y, weights = self._attend(q, k, v, mask, need_weights=need_weights, causal=causal)
        y = y.transpose(1, 2).flatten(2)
        y = self.out_proj(y if self.gate is None else self.gate(y))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return y if self.batch_first else y.transpose(0, 1), weights

    def _batch_first(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The inputs as `(N, L, E)`; what is one tensor stays one."""
        if inputs[0].dim() == 2:
            moved = {id(x): x.unsqueeze(0) for x in inputs}
        else:
            moved = {id(x): x if self.batch_first else x.transpose(0, 1) for x in inputs}
        return tuple(moved[id(x)] for x in inputs)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of every head, each `(N, num_heads, L, head_dim)`."""
        rows, bias = self.num_heads * self.head_dim, self.in_proj_bias
        counts, weights = [1, 1, 1], [getattr(self, name) for name in _SINGLE]
        if self.in_proj_weight is not None:
            # As few products as torch makes, so that both have the same uses of the weight.
            if key is value:
                counts = [3] if query is key else [1, 2]
            weights = list(torch.split(self.in_proj_weight, [rows * n for n in counts]))
        biases: Iterable[Tensor | None] = repeat(None)
        if bias is not None:
            biases = torch.split(bias, [rows * n for n in counts])
        found: list[Tensor] = []
        for x, weight, one, count in zip(
            (query, key, value), weights, biases, counts, strict=False
        ):
            found += F.linear(x, weight, one).chunk(count, dim=-1)
        return tuple(torch.unflatten(x, -1, (-1, self.head_dim)).transpose(1, 2) for x in found)

    def _mask(
        self,
        q: Tensor,
        k: Tensor,
        attention: Tensor | None,
        padding: Tensor | None,
        batched: bool,
    ) -> Tensor | None:
        """What is added to the scores: of the shape `(N, num_heads, L, S)`, or broadcast to it."""
        samples, heads, length, positions = *q.shape[:3], k.shape[2]
        if attention is not None:
            shapes = (length, positions), (samples * heads, length, positions)
            attention = _added("attn_mask", attention, q, *shapes)
            if attention.dim() == 3:
                attention = torch.unflatten(attention, 0, (samples, heads))
        if padding is None:
            return attention
        shape = (samples, positions) if batched else (positions,)
        padding = _added("key_padding_mask", padding, q, shape)[..., None, None, :]
        return padding if attention is None else attention + padding

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        *,
        need_weights: bool,
        causal: bool,
    ) -> tuple[Tensor, Tensor | None]:
        rate = self.dropout if self.training else 0.0
        if not need_weights:
            return F.scaled_dot_product_attention(q, k, v, mask, rate, causal), None
        scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(-2, -1)
        weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = F.dropout(weights, rate) if rate > 0 else weights
        return weights @ v, weights

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.embed_dim}, heads={self.num_heads}, head_dim={self.head_dim}"

    def to_config(self) -> dict[str, Any]:
        """Arguments that rebuild this module."""
        names = ("embed_dim", "num_heads", "head_dim", "dropout", "kdim", "vdim", "batch_first")
        return {name: getattr(self, name) for name in names} | {
            "bias": self.in_proj_bias is not None
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> HeadAttention:
        """Rebuild from `to_config`."""
        return cls(**config)


def _matrix(rows: int, columns: int) -> nn.Parameter:
    weight = nn.Parameter(torch.empty(rows, columns))
    return nn.init.xavier_uniform_(weight)  # type: ignore[return-value]


def _added(name: str, mask: Tensor, query: Tensor, *shapes: tuple[int, ...]) -> Tensor:
    """A mask as what is added to the scores: minus infinity where a boolean one is true."""
    if tuple(mask.shape) not in shapes:
        raise ArgumentError(
            f"has the shape {tuple(mask.shape)}",
            where=name,
            remedy=f"It is to be {' or '.join(map(str, shapes))}.",
        )
    if mask.is_floating_point():
        return mask
    if mask.dtype != torch.bool:
        raise ArgumentError(
            f"holds {mask.dtype} values", where=name, remedy="Masks are boolean or floating."
        )
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask, -math.inf)


def replace_layer(old: nn.Module, new: nn.Module, *models: nn.Module) -> None:
    """Put a layer in the place of another wherever models hold it."""
    for model in models:
        for part in model.modules():
            for name, child in part._modules.items():
                if child is old:
                    part._modules[name] = new


LAYERS[HeadAttention] = heads  # it has the names that the rule reads
