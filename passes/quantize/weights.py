"""Quantizers of weights: attached as parametrizations, baked into exact levels at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from energy_model.errors import ArgumentError, PreconditionError
from passes.graph import ModelGraph, Site
from passes.quantize.eligible import axis_of, rows_of
from passes.quantize.encoding import Encoding
from passes.quantize.fit import Kind, fit_encoding
from passes.rewrite.masks import Mask
from passes.rewrite.parametrizations import Removable, attach, bake, chains_of

_ALL = slice(None)


class _NearestThrough(torch.autograd.Function):
    """The nearest level; the gradient passes as if nothing had been rounded."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, encoding: Encoding) -> Tensor:  # type: ignore[override]
        return encoding.nearest(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None


class WeightQuantizer(Removable):
    """Rounds a weight to the levels of an encoding, bit for bit; gradients pass straight through.

    They also pass where a weight lies beyond the largest level, so that it can come back.

    Args:
        encoding: The grid; its scales are a buffer, so that they are in the `state_dict`.
    """

    scale: Tensor

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self.bits, self.axis, self.block = encoding.bits, encoding.axis, encoding.block
        self.register_buffer("scale", encoding.scale.detach().clone())

    @property
    def encoding(self) -> Encoding:
        """The grid as it is now; shares the buffer."""
        return Encoding(self.bits, self.scale, self.axis, self.block)

    def set_encoding(self, encoding: Encoding, rows: slice = _ALL) -> None:
        """Take over new scales.

        Args:
            encoding: The grid of the weight, or of some of its rows.
            rows: Which ones.

        Raises:
            ArgumentError: The encoding differs in more than its scales.
        """
        given = (encoding.bits, encoding.axis, encoding.block, encoding.scale.shape)
        if given != (self.bits, self.axis, self.block, self.scale[rows].shape):
            raise ArgumentError("the encoding is of another form", where="WeightQuantizer")
        self.scale[rows] = encoding.scale

    def forward(self, weight: Tensor) -> Tensor:
        """The nearest levels, same shape and type."""
        apply: Any = _NearestThrough.apply
        levels: Tensor = apply(weight, self.encoding)
        return levels

    def extra_repr(self) -> str:
        """The grid."""
        per = "channel" if self.block is None else f"block of {self.block}"
        return f"{self.bits} bits per {per}"


def attach_weight_quantizers(graph: ModelGraph, encodings: Mapping[str, Encoding]) -> None:
    """Attach a quantizer to every named site; tied weights stay tied.

    A mask on the weight stays before the quantizer: what is masked is exactly zero. Sites that are
    parts of one parameter share a quantizer.

    Args:
        graph: The traced model; its modules are parametrized in place.
        encodings: The grid per site name.

    Raises:
        ArgumentError: A grid has not as many rows as the weight, or parts of one parameter are not
            all to be quantized alike.
        PreconditionError: A layer has a quantizer already, or a parametrization that is not ours.
    """
    parts: dict[int, list[Site]] = {}
    for name, encoding in encodings.items():
        site = graph.by_name[name]
        _check_fits(_rows(graph, site), encoding, name)
        parts.setdefault(id(graph.parameter(site)), []).append(site)
    for sites in parts.values():
        whole = _joined(graph, sites, encodings)
        for path, attribute in sites[0].owners:
            layer = graph.module.get_submodule(path)
            attach(layer, path, attribute, WeightQuantizer(whole))


def _rows(graph: ModelGraph, site: Site, weight: Tensor | None = None) -> Tensor:
    """A site's own rows of its parameter, or of what is computed from it; a view."""
    whole = graph.parameter(site).detach() if weight is None else weight
    rows = rows_of(graph, site)
    return whole.narrow(axis_of(graph, site), rows.start, rows.stop - rows.start)


def _joined(graph: ModelGraph, sites: list[Site], encodings: Mapping[str, Encoding]) -> Encoding:
    """The grid of a parameter, from those of the sites that are its parts."""
    ordered = sorted(sites, key=lambda site: site.start)
    found = [encodings[site.name] for site in ordered]
    if sum(site.size for site in sites) != graph.parameter(sites[0]).numel():
        raise ArgumentError(
            "it is a part of a parameter of which another part is not quantized",
            where=ordered[0].name,
        )
    if len({(each.bits, each.axis, each.block) for each in found}) > 1:
        raise ArgumentError(
            "parts of one parameter have grids of different forms", where=ordered[0].name
        )
    return replace(found[0], scale=torch.cat([each.scale for each in found]))


def _check_fits(weight: Tensor, encoding: Encoding, name: str) -> None:
    rows = weight.shape[encoding.axis]
    block = encoding.block or weight.numel()
    blocks = -(-(weight.numel() // max(rows, 1)) // block)
    if encoding.scale.shape != (rows, blocks):
        raise ArgumentError(
            f"the grid has scales of shape {tuple(encoding.scale.shape)}, the weight needs "
            f"{(rows, blocks)}",
            where=name,
        )


def weight_quantizers(graph: ModelGraph, site: Site) -> tuple[WeightQuantizer, ...]:
    """The quantizers of a site, one in every layer that holds its weight."""
    return tuple(
        part
        for path, attribute in site.owners
        for part in chains_of(graph.module.get_submodule(path)).get(attribute, ())
        if isinstance(part, WeightQuantizer)
    )


def quantized_sites(graph: ModelGraph) -> tuple[Site, ...]:
    """The sites that have quantizers on their weights."""
    return tuple(site for site in graph.compressible if weight_quantizers(graph, site))


def masked_weight(graph: ModelGraph, site: Site) -> Tensor:
    """The weight as its quantizer sees it: after a mask, if there is one. Detached.

    Of a site that is a part of a parameter, the rows that it is.
    """
    path, attribute = site.owners[0]
    weight = graph.parameter(site).detach()
    for part in chains_of(graph.module.get_submodule(path)).get(attribute, ()):
        if isinstance(part, Mask):
            weight = part(weight)
    return _rows(graph, site, weight)


def refit(graph: ModelGraph, kind: Kind = "mse") -> None:
    """Fit the scales of all quantizers anew to the weights as they are."""
    found = {}
    for site in quantized_sites(graph):
        old = weight_quantizers(graph, site)[0]
        found[site.name] = fit_encoding(
            masked_weight(graph, site),
            old.bits,
            axis=old.axis,
            block=old.block,
            kind=kind,
            name=site.name,
        )
    set_encodings(graph, found)


def set_encodings(graph: ModelGraph, encodings: Mapping[str, Encoding]) -> None:
    """Give quantizers new scales; sites without a quantizer are passed over."""
    for name, encoding in encodings.items():
        site = graph.by_name[name]
        for quantizer in weight_quantizers(graph, site):
            quantizer.set_encoding(encoding, rows_of(graph, site))


def encodings_of(graph: ModelGraph) -> dict[str, Encoding]:
    """Copies of the grids of all attached quantizers, by site name."""
    found = {}
    for site in quantized_sites(graph):
        old = weight_quantizers(graph, site)[0].encoding
        scale = old.scale[rows_of(graph, site)].clone()
        found[site.name] = Encoding(old.bits, scale, old.axis, old.block)
    return found


def bake_weight_quantizers(graph: ModelGraph) -> dict[str, Encoding]:
    """Write the levels into all quantized weights, masks with them; the modules are plain again.

    Parameters keep their identity and tied weights stay tied.

    Returns:
        The encoding of every site that had a quantizer.

    Raises:
        PreconditionError: A layer has another parametrization by now, which keeps ours from
            being removed.
        PostconditionError: A weight is off its grid.
    """
    encodings = encodings_of(graph)
    for name in encodings:
        for path, _ in graph.by_name[name].owners:
            bake(graph.module.get_submodule(path), (Mask, WeightQuantizer))
    for name, encoding in encodings.items():
        site = graph.by_name[name]
        if weight_quantizers(graph, site):
            raise PreconditionError(
                "the layer has a parametrization that is not ours",
                where=name,
                remedy="Merge it first: torch.nn.utils.parametrize.remove_parametrizations(...).",
            )
        encoding.check(graph.weight(site), name)
    return encodings
