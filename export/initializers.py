"""Which initialisers of an ONNX file hold the weight of which site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from export.grouped_products import Grouped, grouped_weights
from passes.graph import Site

Array = NDArray[np.generic]
_LAYOUTS = frozenset({"Transpose", "Reshape", "Identity", "Cast", "Squeeze", "Unsqueeze"})
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN"})


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a site's weight lies in a file.

    Attributes:
        name: Name of the initialiser.
        values: The weight's elements; those that the file leaves out are zero. In the parameter's
            own layout when the layout is known to be kept, otherwise in any order.
        same_layout: Whether the order of elements is that of the parameter.
        part: Index along the first axis when the initialiser stacks several weights (the two
            directions of a recurrent layer), otherwise `None`.
        factors: For every convolution that reads it, the constant that multiplies that
            convolution's input, `None` where there is none. An input mask is one of them.
    """

    name: str
    values: Array
    same_layout: bool
    part: int | None = None
    factors: tuple[Array | None, ...] = ()


def _digest(array: Array) -> tuple[int, int, int]:
    """A fingerprint of the elements that does not depend on their order."""
    words = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    wide = words.astype(np.uint64)
    mixed = (wide ^ (wide >> np.uint64(7))) * np.uint64(0x9E3779B97F4A7C15)
    return array.size, int(wide.sum(dtype=np.uint64)), int((mixed * mixed).sum(dtype=np.uint64))


def _path_names(site: Site) -> set[str]:
    return {f"{module}.{name}" if module else name for module, name in site.owners}


def locate(
    model: onnx.ModelProto, sites: Iterable[Site], weights: Mapping[str, Tensor]
) -> dict[str, Stored]:
    """Find the weight of every site in a file, by name or else by its elements.

    The exporter keeps most names; where it transposes a weight or reorders the gates of a recurrent
    layer it makes a new initialiser, which is recognised by what it holds.

    Args:
        model: The exported model.
        sites: The sites to look for.
        weights: Their frozen weights.

    Returns:
        One entry per site that was found.
    """
    sites = tuple(sites)
    sizes = {weight.numel() for weight in weights.values()} | {site.size for site in sites}
    multiplied, grouped = _multiplied(model), grouped_weights(model)
    arrays = {
        item.name: numpy_helper.to_array(item)
        for item in model.graph.initializer
        if item.name in multiplied
        and item.name not in grouped
        and (int(np.prod(item.dims)) in sizes or (len(item.dims) == 3 and item.dims[0] == 2))
    }
    found: dict[str, Stored] = {}
    for site in sites:
        name = next((n for n in _path_names(site) if n in arrays), None)
        weight = weights.get(site.name)
        if name is not None and weight is not None and arrays[name].shape == tuple(weight.shape):
            found[site.name] = Stored(name, arrays[name], same_layout=True)
    found |= _of_groups(sites, weights, found, grouped)
    missing = [site for site in sites if site.name in weights and site.name not in found]
    by_elements = _by_elements(arrays) if missing else {}
    for site in missing:
        values = weights[site.name].detach().cpu().contiguous().numpy()
        stored = by_elements.get(_digest(values))
        if stored is not None:
            same = stored.values.shape == values.shape and bool((stored.values == values).all())
            found[site.name] = Stored(stored.name, stored.values, same, stored.part)
    found |= _of_computed(sites, found, arrays)
    factors = _input_factors(model)
    return {n: replace(s, factors=factors.get(s.name, ())) for n, s in found.items()}


def _of_groups(
    sites: Iterable[Site],
    weights: Mapping[str, Tensor],
    found: Mapping[str, Stored],
    grouped: Mapping[str, Grouped],
) -> dict[str, Stored]:
    """Weights of which the file holds the kept columns; known by name, or by all their elements."""
    result: dict[str, Stored] = {}
    for site in sites:
        if site.name in found or site.name not in weights:
            continue
        weight, names = weights[site.name].detach().cpu().contiguous().numpy(), _path_names(site)
        for name, item in grouped.items():
            whole = item.whole(weight.shape)
            if whole is not None and (name in names or np.array_equal(whole, weight)):
                result[site.name] = Stored(name, whole, same_layout=True)
                break
    return result


def masked_input(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether the input of a convolution is multiplied by a constant: it may be an input mask."""
    factors = _input_factors(model).get(node.input[1], ())
    return any(factor is not None for factor in factors)


def _multiplied(model: onnx.ModelProto) -> set[str]:
    """Names that a product or a convolution reads, also through a change of layout."""
    names: set[str] = set()
    for node in reversed(model.graph.node):
        layout = node.op_type in _LAYOUTS and names & set(node.output)
        if node.op_type in _PRODUCTS or layout:
            names.update(node.input)
    return names


def _input_factors(model: onnx.ModelProto) -> dict[str, tuple[Array | None, ...]]:
    """`Stored.factors` of every initialiser that is the weight of a convolution."""
    stored = {item.name: item for item in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    result: dict[str, tuple[Array | None, ...]] = {}
    for node in model.graph.node:
        if node.op_type not in _CONVOLUTIONS:
            continue
        weight = node.input[1]
        while weight not in stored and weight in producers and producers[weight].input:
            weight = producers[weight].input[0]
        source = producers.get(node.input[0])
        factor = None
        if source is not None and source.op_type == "Mul":
            factors = [_constant(name, stored, producers) for name in source.input]
            known = [array for array in factors if array is not None]
            factor = known[0] if len(known) == 1 else None
        result[weight] = (*result.get(weight, ()), factor)
    return result


def _constant(
    name: str, stored: Mapping[str, onnx.TensorProto], producers: Mapping[str, onnx.NodeProto]
) -> Array | None:
    """A stored value, seen through nodes that keep its elements; `None` for a computed one.

    The exporter folds only small constants. Of a constant that is repeated over the batch
    (`Expand`) the value for one sample is returned.
    """
    if name in stored:
        return numpy_helper.to_array(stored[name])
    node = producers.get(name)
    if node is None or node.op_type not in ("Identity", "Cast", "Expand", "Reshape"):
        return None
    value = _constant(node.input[0], stored, producers)
    if node.op_type != "Reshape" or value is None:
        return value
    shape = _constant(node.input[1], stored, producers)
    return None if shape is None or 0 in shape else value.reshape(tuple(shape.tolist()))


def _of_computed(
    sites: tuple[Site, ...], found: Mapping[str, Stored], arrays: Mapping[str, Array]
) -> dict[str, Stored]:
    """Weights that are computed in forward are constants in the file; known by their size alone."""
    taken = {stored.name for stored in found.values()}
    free = {name: array for name, array in arrays.items() if name not in taken}
    result: dict[str, Stored] = {}
    for site in sites:
        name = next((n for n, a in free.items() if a.size == site.size and site.computed), None)
        if name is not None:
            result[site.name] = Stored(name, free.pop(name), same_layout=False)
    return result


def _by_elements(arrays: Mapping[str, Array]) -> dict[tuple[int, int, int], Stored]:
    table: dict[tuple[int, int, int], Stored] = {}
    for name, array in arrays.items():
        table.setdefault(_digest(array), Stored(name, array, same_layout=False))
        if array.ndim == 3 and array.shape[0] <= 2:
            for part in range(array.shape[0]):
                stored = Stored(name, array[part], same_layout=False, part=part)
                table.setdefault(_digest(array[part]), stored)
    return table
