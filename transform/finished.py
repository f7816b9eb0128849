"""The model that a method has finished, as it will be counted: nothing dead, traced anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from energy_model.errors import PreconditionError
from passes.graph import Decision, ModelGraph
from passes.inputs import Call
from passes.joint.codebook import Codebook
from passes.quantize.encoding import Encoding
from passes.quantize.widths import apply_widths
from passes.rewrite.dead_structure import REMOVED, remove_dead_structure
from passes.tracing.trace import trace
from transform.certificate import Certificate

# Share of a budget that may be left without a word.
UNSPENT = 0.05

_Form = TypeVar("_Form", Encoding, Codebook)


def without_dead_structure(graph: ModelGraph) -> list[Decision]:
    """Remove channels that a method left dead; a model that does not allow it keeps them."""
    try:
        return remove_dead_structure(graph)
    except PreconditionError as error:
        return [Decision("", "dead channels stay", str(error))]


def unspent(certificate: Certificate, decisions: Sequence[Decision]) -> list[Decision]:
    """A note where dead channels, gone after the plan was made, have left much of a budget unused.

    Args:
        certificate: Of the finished model.
        decisions: What was decided about it.
    """
    if not any(decision.what == REMOVED for decision in decisions) or not certificate.rows:
        return []
    row = max(certificate.rows, key=lambda row: row.reached / row.maximum if row.maximum else 1.0)
    if row.reached >= (1 - UNSPENT) * row.maximum:
        return []
    what = f"the budget is not used up: {row.told(row.reached)} of {row.told(row.maximum)}"
    why = "channels that were dead went after weights were chosen; a looser budget keeps more"
    return [Decision("", what, why)]


def traced_anew(graph: ModelGraph, call: Call) -> ModelGraph:
    """The finished model traced again, with how its weights are written."""
    finished = trace(graph.runnable, call)
    finished.rewritten = graph.rewritten
    finished.encodings = _carried(graph.encodings, graph, finished)
    finished.codebooks = _carried(graph.codebooks, graph, finished)
    apply_widths(finished)
    return finished


def _carried(
    written: Mapping[str, _Form], graph: ModelGraph, finished: ModelGraph
) -> dict[str, _Form]:
    """How the weights that are left are written, each checked against its weight.

    Args:
        written: Of the graph's sites, by name.
        graph: What the method has finished.
        finished: The same, traced anew.
    """
    # By place first: traced anew, the parts of a cut attention weight have other names.
    named = [site for site in graph.compressible if site.name in written]
    places = {(site.owners, site.start): written[site.name] for site in named}
    found = {}
    for site in finished.compressible:
        form = places.get((site.owners, site.start), written.get(site.name))
        if form is not None:
            form.check(finished.weight(site), site.name)
            found[site.name] = form
    return found
