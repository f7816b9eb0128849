"""Codebooks on weights: attached as parametrizations, baked into exact values at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from energy_model.errors import PreconditionError
from passes.graph import ModelGraph, Site
from passes.joint.codebook import Codebook, Kind
from passes.rewrite.masks import Mask
from passes.rewrite.parametrizations import Removable, attach, bake, chains_of

_MOST = 256


class _LevelsThrough(torch.autograd.Function):
    """The nearest levels; the gradient passes as if nothing had been rounded."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, quantizer: CodebookQuantizer) -> Tensor:  # type: ignore[override]
        return quantizer.nearest(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None


class CodebookQuantizer(Removable):
    """Gives every weight the nearest value of its codebook.

    A parameter whose parts are sites of their own has a codebook for each part. Evaluation always
    sees the levels; training sees the weights themselves until `through` is set, and then the
    levels, with gradients passed straight to the weights.

    Args:
        stretches: First element and number of elements of every part.
        kind: Of the codebooks.
    """

    levels: Tensor
    widths: Tensor
    scales: Tensor
    reserved: Tensor

    def __init__(self, stretches: tuple[tuple[int, int], ...], kind: Kind = "free") -> None:
        super().__init__()
        self.stretches, self.kind, self.through = stretches, kind, False
        # Of a fixed shape, so that a state with other widths can be loaded; what is unused is NaN.
        self.register_buffer("levels", torch.full((len(stretches), _MOST), torch.nan))
        self.register_buffer("widths", torch.zeros(len(stretches), dtype=torch.int64))
        self.register_buffer("scales", torch.zeros(len(stretches)))
        self.register_buffer("reserved", torch.zeros(len(stretches), dtype=torch.bool))

    def codebook(self, part: int) -> Codebook | None:
        """The codebook of a part; `None` before it has one."""
        bits = int(self.widths[part])
        if not bits:
            return None
        row = self.levels[part]
        return Codebook(
            row[~row.isnan()].clone(),
            bits,
            kind=self.kind,
            reserved_zero=bool(self.reserved[part]),
            scale=float(self.scales[part]),
        )

    def set_codebook(self, part: int, codebook: Codebook) -> None:
        """Take over the codebook of a part."""
        self.levels[part] = torch.nan
        self.levels[part, : len(codebook.levels)] = codebook.levels.to(self.levels.device)
        self.widths[part] = codebook.bits
        self.scales[part] = codebook.scale
        self.reserved[part] = codebook.reserved_zero

    def nearest(self, weight: Tensor) -> Tensor:
        """The nearest levels, same shape and type; parts without a codebook stay as they are."""
        flat = weight.detach().reshape(-1).clone()
        for part, (start, size) in enumerate(self.stretches):
            if (codebook := self.codebook(part)) is not None:
                values = flat[start : start + size]
                values.copy_(codebook.nearest(values))
        return flat.reshape(weight.shape)

    def forward(self, weight: Tensor) -> Tensor:
        """The levels, or the weight itself; same shape and type."""
        if self.training and not self.through:
            return weight
        apply: Any = _LevelsThrough.apply
        levels: Tensor = apply(weight, self)
        return levels

    def extra_repr(self) -> str:
        """Bits of the parts."""
        return f"{', '.join(str(int(bits)) for bits in self.widths)} bits"


def attach_codebooks(graph: ModelGraph, sites: tuple[Site, ...], *, kind: Kind = "free") -> None:
    """Attach a quantizer without a codebook to every parameter that holds one of the sites.

    What else such a parameter holds stays as it is.

    Raises:
        PreconditionError: A layer has a parametrization that is not ours.
    """
    parts: dict[int, list[Site]] = {}
    for site in sites:
        parts.setdefault(id(graph.parameter(site)), []).append(site)
    for found in parts.values():
        ordered = sorted(found, key=lambda site: site.start)
        stretches = tuple((site.start, site.size) for site in ordered)
        for path, attribute in ordered[0].owners:
            part = CodebookQuantizer(stretches, kind)
            attach(graph.module.get_submodule(path), path, attribute, part)


def quantizers_of(graph: ModelGraph, site: Site) -> tuple[tuple[CodebookQuantizer, int], ...]:
    """The quantizers of a site, one in every layer that holds its weight, and its part in them."""
    stretch = site.start, site.size
    return tuple(
        (part, part.stretches.index(stretch))
        for path, attribute in site.owners
        for part in chains_of(graph.module.get_submodule(path)).get(attribute, ())
        if isinstance(part, CodebookQuantizer) and stretch in part.stretches
    )


def set_codebooks(graph: ModelGraph, codebooks: Mapping[str, Codebook]) -> None:
    """Give sites codebooks, in their quantizers and in the graph."""
    for name, codebook in codebooks.items():
        for quantizer, part in quantizers_of(graph, graph.by_name[name]):
            quantizer.set_codebook(part, codebook)
    graph.codebooks.update(codebooks)


def read_codebooks(graph: ModelGraph) -> dict[str, Codebook]:
    """The codebooks of all sites that have one, by name."""
    found = {}
    for site in graph.compressible:
        for quantizer, part in quantizers_of(graph, site)[:1]:
            if (codebook := quantizer.codebook(part)) is not None:
                found[site.name] = codebook
    return found


def train_through(graph: ModelGraph, through: bool) -> None:
    """Let training see the levels, or the weights themselves."""
    for module in graph.module.modules():
        if isinstance(module, CodebookQuantizer):
            module.through = through


def bake_codebooks(graph: ModelGraph) -> dict[str, Codebook]:
    """Write the levels into all weights with a codebook; the modules are plain again.

    Returns:
        The codebook of every site that had one.

    Raises:
        PreconditionError: A layer has another parametrization, which keeps ours from being removed.
        PostconditionError: A weight has other values than its codebook.
    """
    codebooks = read_codebooks(graph)
    named = [site for site in graph.compressible if quantizers_of(graph, site)]
    for site in named:
        for path, _ in site.owners:
            layer = graph.module.get_submodule(path)
            modes = [(part, part.training) for part in layer.modules()]
            for chain in chains_of(layer).values():
                chain.eval()  # what is written is what evaluation sees
            bake(layer, (Mask, CodebookQuantizer))
            for part, training in modes:
                part.training = training
    for site in named:
        if quantizers_of(graph, site):
            raise PreconditionError(
                "the layer has a parametrization that is not ours",
                where=site.name,
                remedy="Merge it first: torch.nn.utils.parametrize.remove_parametrizations(...).",
            )
        if site.name in codebooks:
            codebooks[site.name].check(graph.weight(site), site.name)
    return codebooks
