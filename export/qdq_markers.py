"""Markers of quantizers, put where the runtime makes most of them; the function stays the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import networkx as nx

from export.markers import DOMAIN, OPERATOR, Grid, Mark, index_of
from export.movers import keeps_elements, moves_values
from export.onnx_graph import Node, Rewriter, Shapes, attributes

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def weight_of(node: Node, rewriter: Rewriter) -> str | None:
    """Name of the stored weight of a layer; `None` for any other node."""
    layer = node.op_type in PRODUCTS and node.input[1] in rewriter.stored
    return str(node.input[1]) if layer else None


def pool_globally(rewriter: Rewriter, shapes: Shapes) -> None:
    """Write the mean over space of a quantized tensor as GlobalAveragePool.

    ONNX Runtime runs that, but no ReduceMean, on integers.
    """
    producers = rewriter.producers()
    for node in list(rewriter.nodes):
        source = producers.get(node.input[0]) if node.op_type == "ReduceMean" else None
        rank, axes = len(shapes.get(node.input[0], [])), _axes(node, rewriter)
        if source is None or index_of(source) is None or rank < 3:
            continue
        if sorted(axis % rank for axis in axes) != list(range(2, rank)):
            continue
        rewriter.remove(node)
        output = node.output[0]
        if attributes(node).get("keepdims", 1):
            rewriter.add("GlobalAveragePool", [node.input[0]], output)
        else:
            pooled = rewriter.fresh(f"{output}_pooled")
            rewriter.add("GlobalAveragePool", [node.input[0]], pooled)
            rewriter.add("Flatten", [pooled], output, axis=1)


def _axes(node: Node, rewriter: Rewriter) -> list[int]:
    if len(node.input) < 2:
        return list(attributes(node).get("axes", []))
    values = rewriter.array(node.input[1])
    return [] if values is None else [int(v) for v in values.reshape(-1)]


def idle_quantizers(
    rewriter: Rewriter, marks: Sequence[Mark], integer: Collection[str]
) -> frozenset[str]:
    """Quantizers that neither feed nor follow a layer that runs in integers.

    What lies between two layers (activations, additions, pools) is one region: the integers that a
    residual stream is held in serve every layer that reads it.

    Args:
        rewriter: The graph with its markers.
        marks: What they stand for.
        integer: Names of the weights of the layers that run in integers.

    Returns:
        Paths of the quantizers none of whose calls is needed.
    """
    regions, needed, places = nx.Graph(), set(), {}
    for position, node in enumerate(rewriter.nodes):
        weight = weight_of(node, rewriter)
        names = [name for name in (*node.input, *node.output) if name not in rewriter.stored]
        if weight is not None:
            if weight in integer:
                needed.update(names)
            continue
        regions.add_edges_from((position, name) for name in names if name)
        if (index := index_of(node)) is not None:
            places[index] = position
    useful: set[str] = set()
    for region in nx.connected_components(regions):
        if region & needed:
            useful.update(marks[i].path for i, place in places.items() if place in region)
    return frozenset(mark.path for mark in marks) - useful


def drop_markers(rewriter: Rewriter, indices: Collection[int]) -> None:
    """Take out the markers of those indices."""
    for node in [n for n in rewriter.nodes if index_of(n) in indices]:
        rewriter.remove(node)
        _take_out(rewriter, node)


def _take_out(rewriter: Rewriter, node: Node) -> None:
    """Connect what reads a removed marker with what it read."""
    source, output = node.input[0], node.output[0]
    if output not in rewriter.outputs:
        rewriter.redirect(output, source)
    elif source in rewriter.producers() and source not in rewriter.outputs:
        # A graph keeps the names of its outputs.
        producer = rewriter.producers()[source]
        producer.output[list(producer.output).index(source)] = output
        rewriter.redirect(source, output)
    else:
        rewriter.add("Identity", [source], output)


def repeated_markers(rewriter: Rewriter, marks: Sequence[Mark]) -> frozenset[int]:
    """Markers whose input lies on their grid already, so that they change nothing."""
    producers = rewriter.producers()
    grids = {i: mark.grid for i, mark in enumerate(marks)}

    def lies(name: str, grid: Grid) -> bool:
        node = producers.get(name)
        if node is None:
            return False
        index = index_of(node)
        if index is not None:
            return grids[index] == grid
        if node.op_type == "Concat":
            return all(lies(source, grid) for source in node.input)
        return (node.op_type == "Relu" or moves_values(node, rewriter)) and lies(
            node.input[0], grid
        )

    found = ((index_of(node), node) for node in rewriter.nodes)
    return frozenset(i for i, node in found if i is not None and lies(node.input[0], grids[i]))


def raise_markers(rewriter: Rewriter) -> None:
    """Round before values are moved rather than after it, so that layers end in their rounding.

    A marker behind a concatenation becomes one for each of its parts, on the same grid.
    """
    changed = True
    while changed:
        changed = False
        producers, readers = rewriter.producers(), rewriter.readers()
        for node in rewriter.nodes:
            mover = producers.get(node.input[0]) if index_of(node) is not None else None
            if mover is None or mover.output[0] in rewriter.outputs:
                continue
            if len(readers[mover.output[0]]) > 1 or not _may_rise(mover, rewriter, producers):
                continue
            _raise(rewriter, node, mover)
            changed = True
            break


def _may_rise(mover: Node, rewriter: Rewriter, producers: Mapping[str, Node]) -> bool:
    if mover.op_type == "Concat":
        sources = list(mover.input)
    elif keeps_elements(mover, rewriter):
        sources = [mover.input[0]]
    else:
        return False
    return all(name in producers and index_of(producers[name]) is None for name in sources)


def _raise(rewriter: Rewriter, marker: Node, mover: Node) -> None:
    count = len(mover.input) if mover.op_type == "Concat" else 1
    index = index_of(marker)
    rewriter.remove(marker)
    for place in range(count):
        source = mover.input[place]
        rounded = rewriter.fresh(f"{source}_rounded")
        rewriter.add(OPERATOR, [source], rounded, domain=DOMAIN, index=index)
        mover.input[place] = rounded
    mover.output[0] = marker.output[0]
