"""What the layers of a model cost, as terms that follow a keep-state."""

from __future__ import annotations

from collections.abc import Sequence

from energy_model.hardware import Hardware
from passes.analysis.costs import cost_table
from passes.graph import ModelGraph, Site, Use
from passes.quantize.widths import weight_bits
from passes.structure.cost_terms import (
    LayerEnergy,
    Nonzeros,
    Product,
    Term,
    elements,
    nonzero_counts,
    one_hot,
)
from passes.structure.geometry import Arrangement, arrangement_of
from passes.structure.lines import Lines, Side


def site_terms(
    graph: ModelGraph, lines: Lines, hardware: Hardware, keys: Sequence[str]
) -> list[Term]:
    """Multiply-accumulates, nonzeros, bits and energy of every site, by the widths of its uses.

    Args:
        graph: The traced model.
        lines: Its lines.
        hardware: The accelerator of the energy model.
        keys: Keys of all costs, in order.
    """
    rows = {row.name: row for row in cost_table(graph, hardware)}
    terms: list[Term] = []
    for site in graph.sites:
        row = rows[site.name]
        uses = [] if site.computed else _counted_uses(graph, lines, site)
        if uses:
            terms += _cut_site(graph, lines, site, uses, hardware, keys)
            continue
        own = {"macs": row.macs, "energy": row.energy.relaxed}
        if site.computed:
            own["sparse_macs"] = row.nonzeros * site.macs_per_weight()
        terms.append(Product(site.name, (), one_hot(keys, own)))
        if not site.computed:
            sides = lines.of_site(site) or (Side(site.size),)
            terms.append(_kept_weights(graph, site, sides, keys))
    return terms


def _counted_uses(graph: ModelGraph, lines: Lines, site: Site) -> list[tuple[Use, Arrangement]]:
    """The uses of a site that is cut; none if it is not, or in a way that is not counted."""
    if not lines.cutting(graph.parameter(site)):
        return []
    found = [(use, arrangement_of(graph, lines, site, use)) for use in site.uses]
    known = [(use, how) for use, how in found if how is not None]
    return known if len(known) == len(found) else []


def _cut_site(
    graph: ModelGraph,
    lines: Lines,
    site: Site,
    uses: Sequence[tuple[Use, Arrangement]],
    hardware: Hardware,
    keys: Sequence[str],
) -> list[Term]:
    sides = lines.of_site(site) or ()
    kept = _kept_weights(graph, site, sides, keys)
    zeros = kept if isinstance(kept, Nonzeros) else None
    first = (sides[0], sides[1])
    energy = one_hot(keys, {"energy": 1})
    return [
        elements(site.name, sides, one_hot(keys, {"macs": site.macs_per_weight()})),
        kept,
        LayerEnergy(site.name, first, tuple(uses), hardware, zeros, energy),
    ]


def _kept_weights(
    graph: ModelGraph, site: Site, sides: Sequence[Side], keys: Sequence[str]
) -> Term:
    """Nonzeros of a site, their bits and their multiply-accumulates."""
    weight = graph.weight(site)
    bits, steps = weight_bits(graph, site), site.macs_per_weight()
    each = one_hot(keys, {"nonzeros": 1, "weight_bits": bits, "sparse_macs": steps})
    counts = nonzero_counts(weight, sides)
    if counts is None and not any(side.line is not None for side in sides):
        dense = int((weight != 0).sum())
        return Product(site.name, (), tuple(w * dense for w in each))
    if counts is None:
        return elements(site.name, sides, each)
    return Nonzeros(site.name, (sides[0], sides[1]), counts, each)


def parameter_terms(graph: ModelGraph, lines: Lines, keys: Sequence[str]) -> list[Term]:
    """Elements of every parameter, tied ones once; see `site_terms`."""
    return [
        elements(name.rpartition(".")[0], lines.sides(parameter), one_hot(keys, {"params": 1}))
        for name, parameter in graph.module.named_parameters()
    ]
