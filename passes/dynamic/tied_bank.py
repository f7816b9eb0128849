"""Tied weights as a parametrization: the layer's parameter is a small bank, its weight a lookup.

The `state_dict` holds the bank once, and neither the weight nor the index. The gradient of the bank
is autograd's: the sum over the weights that take an entry.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from energy_model.errors import ArgumentError, PreconditionError
from passes.dynamic.deep_r import signs
from passes.dynamic.hashed import balanced_index, bucket_sizes, hashed_index
from passes.graph import ModelGraph, Site
from passes.rewrite.parametrizations import Removable, attach, bake, chains_of

Dealing = Literal["balanced", "hashed"]


class TiedBank(Removable):
    """Looks every weight up in a bank.

    Args:
        shape: Of the weight.
        buckets: Entries of the bank.
        key: Of the index.
        dealing: `"balanced"` or `"hashed"`; see `balanced_index` and `hashed_index`.
        sign_key: Of signs that the entries are multiplied with; `None` is no signs.
        leading: How many leading dimensions of the weight the index runs over; the others are those
            of an entry. `None` is all of them, for entries of one weight; 2 makes entries of whole
            kernels.

    Attributes:
        shape: Of the weight.
        index: Entry of every cell, int32 `(cells,)`; not in the `state_dict`.
        sign: Sign of every cell, int8 `(cells,)`, or `None`; not in the `state_dict`.

    Raises:
        ArgumentError: The bank is larger than the weight, or an argument is not allowed.
    """

    # What follows from the key is stored nowhere.
    regenerated: ClassVar[frozenset[str]] = frozenset({"index", "sign"})

    index: Tensor
    sign: Tensor | None

    def __init__(
        self,
        shape: tuple[int, ...],
        buckets: int,
        key: int,
        *,
        dealing: Dealing = "balanced",
        sign_key: int | None = None,
        leading: int | None = None,
    ) -> None:
        super().__init__()
        leading = len(shape) if leading is None else leading
        if dealing not in ("balanced", "hashed") or not 1 <= leading <= len(shape):
            raise ArgumentError(
                f"dealing {dealing!r} over {leading} of {len(shape)} dimensions",
                where="TiedBank",
                remedy="Deal 'balanced' or 'hashed', over one or more leading dimensions.",
            )
        self.shape, self.buckets, self.entry = tuple(shape), buckets, tuple(shape[leading:])
        self.key, self.sign_key, self.leading = key, sign_key, leading
        self.dealing: Dealing = dealing
        self.is_full = False
        cells = math.prod(shape[:leading])
        deal = balanced_index if dealing == "balanced" else hashed_index
        self.register_buffer("index", deal(cells, buckets, key), persistent=False)
        sign = None if sign_key is None else signs(sign_key, cells).to(torch.int8)
        self.register_buffer("sign", sign, persistent=False)

    @property
    def unique_parameters(self) -> int:
        """Parameters of the entries that are taken by a weight."""
        used = int(torch.count_nonzero(bucket_sizes(self.index, self.buckets)))
        return used * math.prod(self.entry)

    @property
    def repeats(self) -> float:
        """Weights for each parameter of the bank, on average."""
        return len(self.index) / self.buckets

    def forward(self, bank: Tensor) -> Tensor:
        """The weight, of the bank's type."""
        if self.is_full:
            return bank
        if self.index.device != bank.device:  # nothing moves what is not stored
            self.to(bank.device)
        rows = bank.index_select(0, self.index)
        if self.sign is not None:
            rows = rows * self._spread(self.sign)  # of the bank's type: signs are integers
        return rows.reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The bank whose weight is nearest: the mean over the weights that take an entry.

        A tensor that is a bank already, because another layer shares it, stays as it is.
        """
        if weight.shape == (self.buckets, *self.entry) and weight.shape != self.shape:
            return weight
        rows = weight.detach().reshape(len(self.index), *self.entry)
        if self.sign is not None:
            rows = rows * self._spread(self.sign).to(rows.dtype)
        total = rows.new_zeros(self.buckets, *self.entry).index_add(0, self.index, rows)
        return total / self._spread(bucket_sizes(self.index, self.buckets).clamp(min=1))

    def _spread(self, cells: Tensor) -> Tensor:
        return cells.reshape(-1, *(1 for _ in self.entry))

    def to_config(self) -> dict[str, Any]:
        """Arguments that make a bank with the same index."""
        names = ("shape", "buckets", "key", "dealing", "sign_key", "leading")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        """Sizes of the weight and the bank."""
        return f"{self.shape} from {self.buckets} entries of {math.prod(self.entry)}"


def attach_bank(
    graph: ModelGraph,
    site: Site,
    bank: TiedBank,
    initial: Callable[[TiedBank], Tensor] | None = None,
) -> None:
    """Make a site's parameter a bank, which keeps its identity, and its weight a lookup.

    Args:
        graph: The traced model; the modules that hold the parameter are parametrized in place.
        site: The site; it is a whole parameter.
        bank: For a weight of the parameter's shape.
        initial: Function of the bank: its first values, of shape `(buckets, *entry)`. `None`
            takes those nearest to the weight as it is.

    Raises:
        PreconditionError: The site is a part of a parameter or has another shape than the bank's
            weight, or the tensor is parametrized already.
        ArgumentError: The initial values have another shape.
    """
    parameter = graph.parameter(site)
    layers = [(path, graph.module.get_submodule(path), name) for path, name in site.owners]
    _check_site(site, parameter, bank, any(name in chains_of(x) for _, x, name in layers))
    bank.to(parameter.device)
    values = bank.right_inverse(parameter) if initial is None else initial(bank)
    if values.shape != (bank.buckets, *bank.entry):
        raise ArgumentError(
            f"initial values of shape {tuple(values.shape)} for a bank of "
            f"{(bank.buckets, *bank.entry)}",
            where=site.name,
            remedy="Draw one value for each parameter of the bank.",
        )
    for number, (path, layer, name) in enumerate(layers):
        attach(layer, path, name, copy.deepcopy(bank) if number else bank)
    parameter.grad = None  # it had the shape of the weight
    with torch.no_grad():
        parameter.copy_(values)


def _check_site(site: Site, parameter: Tensor, bank: TiedBank, taken: bool) -> None:
    if taken:
        raise PreconditionError(
            "the weight has a mask, a quantizer or another parametrization",
            where=site.name,
            remedy="Tie weights before anything else is attached to them.",
        )
    if site.size != parameter.numel() or tuple(parameter.shape) != bank.shape:
        raise PreconditionError(
            f"{site.size} weights of a parameter of shape {tuple(parameter.shape)} cannot be "
            f"looked up as {bank.shape}",
            where=site.name,
            remedy="Make the bank for the shape of a whole parameter.",
        )


def bank_of(layer: nn.Module, attribute: str = "weight") -> TiedBank | None:
    """The bank that a layer's tensor is looked up in, if it is."""
    chain = chains_of(layer).get(attribute, ())
    return next((part for part in chain if isinstance(part, TiedBank)), None)


def bake_banks(graph: ModelGraph) -> None:
    """Write the weights out in full; the parameters keep their identity."""
    written: set[int] = set()
    for layer in list(graph.module.modules()):
        for name in chains_of(layer):
            if (bank := bank_of(layer, name)) is not None and not bank.is_full:
                original = chains_of(layer)[name].get_parameter("original")
                if id(original) not in written:
                    _write(original, bank)
                written.add(id(original))
                bank.is_full = True
        bake(layer, (TiedBank,))


def _write(original: nn.Parameter, bank: TiedBank) -> None:
    with torch.no_grad():
        original.set_(bank(original).clone())  # type: ignore[call-overload]
    original.grad = None


def rescale_gradient(gradient: Tensor, bank: TiedBank) -> Tensor:
    """The mean instead of the sum over the weights that take an entry.

    To be used between the backward pass and the optimizer's step.
    """
    return gradient / bank.repeats
