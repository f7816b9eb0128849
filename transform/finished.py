"""The model that a method has finished, as it will be counted: nothing dead, traced anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from energy_model.errors import PreconditionError
from passes.graph import Decision, ModelGraph
from passes.inputs import Call
from passes.joint.codebook import Codebook
from passes.quantize.encoding import Encoding
from passes.quantize.widths import apply_widths
from passes.rewrite.dead_structure import remove_dead_structure
from passes.tracing.trace import trace

_Form = TypeVar("_Form", Encoding, Codebook)


def without_dead_structure(graph: ModelGraph) -> list[Decision]:
    """Remove channels that a method left dead; a model that does not allow it keeps them."""
    try:
        return remove_dead_structure(graph)
    except PreconditionError as error:
        return [Decision("", "dead channels stay", str(error))]


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
