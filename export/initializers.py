"""Which initialisers of an ONNX file hold the weight of which site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from passes.graph import Site

Array = NDArray[np.generic]
_LAYOUTS = frozenset({"Transpose", "Reshape", "Identity", "Cast", "Squeeze", "Unsqueeze"})
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN"})


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a site's weight lies in a file.

    Attributes:
        name: Name of the initialiser.
        values: The weight's elements. In the parameter's own layout when the layout is known to be
            kept, otherwise in any order.
        same_layout: Whether the order of elements is that of the parameter.
        part: Index along the first axis when the initialiser stacks several weights (the two
            directions of a recurrent layer), otherwise `None`.
    """

    name: str
    values: Array
    same_layout: bool
    part: int | None = None


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
    multiplied = _multiplied(model)
    arrays = {
        item.name: numpy_helper.to_array(item)
        for item in model.graph.initializer
        if item.name in multiplied
        and (int(np.prod(item.dims)) in sizes or (len(item.dims) == 3 and item.dims[0] == 2))
    }
    found: dict[str, Stored] = {}
    for site in sites:
        name = next((n for n in _path_names(site) if n in arrays), None)
        weight = weights.get(site.name)
        if name is not None and weight is not None and arrays[name].shape == tuple(weight.shape):
            found[site.name] = Stored(name, arrays[name], same_layout=True)
    missing = [site for site in sites if site.name in weights and site.name not in found]
    by_elements = _by_elements(arrays) if missing else {}
    for site in missing:
        values = weights[site.name].detach().cpu().contiguous().numpy()
        stored = by_elements.get(_digest(values))
        if stored is not None:
            same = stored.values.shape == values.shape and bool((stored.values == values).all())
            found[site.name] = Stored(stored.name, stored.values, same, stored.part)
    return found | _of_computed(sites, found, arrays)


def _multiplied(model: onnx.ModelProto) -> set[str]:
    """Names that a product or a convolution reads, also through a change of layout."""
    names: set[str] = set()
    for node in reversed(model.graph.node):
        layout = node.op_type in _LAYOUTS and names & set(node.output)
        if node.op_type in _PRODUCTS or layout:
            names.update(node.input)
    return names


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
