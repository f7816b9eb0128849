"""Which weights are compressed jointly, and within which bounds."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from energy_model.errors import ArgumentError, PreconditionError
from passes.graph import Decision, LayerRule, ModelGraph, Site
from passes.methods.joint.config import Joint
from passes.methods.joint.rates import Layer


@dataclass(frozen=True, slots=True)
class Target:
    """A weight that is compressed.

    Attributes:
        site: The weight.
        widths: Bits that it may have; those of its type alone where it is not quantized.
        least: Weights that stay at least.
        quantized: Whether it gets a codebook.
    """

    site: Site
    widths: tuple[int, ...]
    least: int
    quantized: bool

    def first_bits(self, start: int, earlier: Mapping[str, int]) -> int:
        """Bits before they are chosen: given, or those of an earlier result, or `start`."""
        if len(self.widths) == 1:
            return self.widths[0]
        bits = earlier.get(self.name, start)
        return bits if bits in self.widths else start

    @property
    def bounds(self) -> Layer:
        """What a rate must know."""
        return Layer(self.widths, self.least)

    @property
    def name(self) -> str:
        """Name of the site."""
        return self.site.name


@dataclass(frozen=True, slots=True)
class Targets:
    """All weights that are compressed.

    Attributes:
        rows: In the order of the graph's sites.
        fixed: Bits of what is left alone, as papers count them.
        decisions: Why some layers are left alone, or not quantized.
    """

    rows: tuple[Target, ...]
    fixed: int
    decisions: tuple[Decision, ...]

    def weights(self, graph: ModelGraph) -> list[Tensor]:
        """Views of the weights as they are, in order."""
        return [graph.weight(target.site) for target in self.rows]


def find_targets(graph: ModelGraph, config: Joint, *, trained: bool) -> Targets:
    """Choose the weights, and read the bounds on each.

    Args:
        graph: The traced model; read only.
        config: Bits by layer, bounds on bits.
        trained: The model will be trained: weights that cannot be parametrized, as those of
            recurrent layers, are then pruned only.

    Raises:
        ArgumentError: A pattern for bits names no layer.
        PreconditionError: No weight is left, or one is not finite.
    """
    given = _given_bits(graph, config)
    rows, fixed, decisions = [], 0, []
    for site in graph.compressible:
        rule = graph.rules.get(site.name, LayerRule())
        stored = graph.weight(site).element_size() * 8
        nonzeros = int(graph.weight(site).count_nonzero())
        if rule.min_density >= 1:
            # Training may give back what was zero.
            fixed += stored * (site.size if trained else nonzeros)
            continue
        _require_finite(graph.weight(site), site.name)
        why = _why_not_quantized(graph, site, trained=trained)
        quantized = config.mode != "prune" and not why
        if why and config.mode != "prune":
            decisions.append(Decision(site.name, "keeps its type", why))
        widths = (given[site.name],) if site.name in given else tuple(config.widths)
        least = nonzeros if config.mode == "quantize" else min(rule.least(site.size), nonzeros)
        rows.append(Target(site, widths if quantized else (stored,), least, quantized))
    if not rows:
        raise PreconditionError(
            "every layer is left alone",
            where=type(graph.module).__name__,
            remedy="Give rules for fewer layers.",
        )
    return Targets(tuple(rows), fixed, tuple(decisions))


def _require_finite(weight: Tensor, name: str) -> None:
    """Raise for NaN and infinite weights before anything is measured or trained."""
    bad = weight.numel() - int(weight.isfinite().sum())
    if bad:
        raise PreconditionError(
            f"{bad:,} of {weight.numel():,} weights are NaN or infinite",
            where=name,
            remedy="Repair or retrain the model first: no budget can be proved on such weights.",
        )


def _given_bits(graph: ModelGraph, config: Joint) -> dict[str, int]:
    """Bits that the user gave, by site; the last pattern that matches a layer wins."""
    if config.bits is None:
        return {}
    patterns: Mapping[str, int] = (
        config.bits if isinstance(config.bits, Mapping) else {"*": config.bits}
    )
    names = [site.name for site in graph.compressible]
    found: dict[str, int] = {}
    for pattern, bits in patterns.items():
        # Parts of a parameter have brackets in their names, which a pattern reads otherwise.
        matching = [n for n in names if n == pattern or fnmatch.fnmatchcase(n, pattern)]
        if not matching:
            raise ArgumentError(
                f"no layer is named {pattern!r}",
                where="Joint.bits",
                remedy=f"Layers are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}.",
            )
        found |= dict.fromkeys(matching, bits)
    return found


def _why_not_quantized(graph: ModelGraph, site: Site, *, trained: bool) -> str:
    """Why a weight cannot have a codebook; empty if it can."""
    if not graph.weight(site).is_floating_point():
        return "its type is not a float"
    if not trained:
        return ""
    modules = [graph.module.get_submodule(path) for path, _ in site.owners]
    if any(isinstance(module, nn.RNNBase) for module in modules):
        return "weights of recurrent layers are pruned only while they are trained"
    return ""
