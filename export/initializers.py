"""Which constants of an ONNX file are the weight of which site.

A weight is an initialiser, or what a few operators make of initialisers: codes and scales, gaps and
values. Either way it is the value that a product reads, less changes of layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from torch import Tensor

from export.code_ranges import LAYOUTS
from export.constant_operators import Array
from export.constants import Constants
from export.grouped_products import Grouped, grouped_weights
from export.reads import PRODUCTS, Read, Reads
from passes.graph import Site

_DECODED = frozenset({"ScatterElements", "ScatterND", "Gather"})


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a site's weight lies in a file.

    Attributes:
        name: Name of the value: of an initialiser, or of what is decoded from several.
        values: The weight's elements; those that the file leaves out are zero. In the parameter's
            own layout when the layout is known to be kept, otherwise in any order.
        same_layout: Whether the order of elements is that of the parameter.
        part: Index along the first axis when the initialiser stacks several weights (the two
            directions of a recurrent layer), otherwise `None`.
        reads: What every product that reads it reads beside it, and writes.
        bits: Width of an element as the file stores it: 8 for INT8 codes, 4 for packed INT4 codes.
            0 stands for that of the type of `values`.
        needed: Width of the narrowest symmetric grid that holds all its codes; `bits` where it is
            not stored as codes, for which 0 stands too.
        form: How it is stored: `"dense"`, `"columns"`, or of `"codes"` and `"sparse"` what applies.
    """

    name: str
    values: Array
    same_layout: bool
    part: int | None = None
    reads: tuple[Read, ...] = ()
    bits: int = 0
    needed: int = 0
    form: str = "dense"

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", self.bits or self.values.dtype.itemsize * 8)
        object.__setattr__(self, "needed", self.needed or self.bits)

    @property
    def coded(self) -> bool:
        """Whether it is stored as codes of a grid."""
        return "codes" in self.form


def _digest(array: Array) -> tuple[int, int, int]:
    """A fingerprint of the elements that does not depend on their order, nor on signs of zeros."""
    words = (np.ascontiguousarray(array) + 0).reshape(-1).view(f"u{array.dtype.itemsize}")
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
    layer it makes a new constant, which is recognised by what it holds.

    Args:
        model: The exported model.
        sites: The sites to look for.
        weights: Their frozen weights.

    Returns:
        One entry per site that was found.
    """
    sites = tuple(sites)
    constants, grouped = Constants(model), grouped_weights(model)
    arrays = _candidates(model, constants, grouped, sites, weights)
    found: dict[str, Stored] = {}
    for site in sites:
        weight = weights.get(site.name)
        size = -1 if weight is None else weight.numel()
        name = next((n for n in _path_names(site) if n in arrays and arrays[n].size == size), None)
        if name is not None and weight is not None:
            same = arrays[name].shape == tuple(weight.shape)
            found[site.name] = Stored(name, arrays[name], same_layout=same)
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
    reads = Reads(model, constants).by_weight()
    return {
        name: replace(_described(stored, constants), reads=reads.get(stored.name, ()))
        for name, stored in found.items()
    }


def _candidates(
    model: onnx.ModelProto,
    constants: Constants,
    grouped: Mapping[str, Grouped],
    sites: tuple[Site, ...],
    weights: Mapping[str, Tensor],
) -> dict[str, Array]:
    """Constants that a product reads and that have the size of a weight, initialisers first."""
    sizes = {weight.numel() for weight in weights.values()} | {site.size for site in sites}
    wanted = {name for site in sites for name in _path_names(site)}
    multiplied = _multiplied(model)
    computed = [name for node in reversed(model.graph.node) for name in node.output]
    names = [name for name in (*constants.stored_names, *computed) if name in multiplied]
    arrays: dict[str, Array] = {}
    for name in names:
        own = constants.is_stored(name) or name in wanted or _is_source(name, constants)
        if name not in constants or name in grouped or not own:
            continue
        dims = constants.dims(name)
        if int(np.prod(dims)) in sizes or (len(dims) == 3 and dims[0] == 2):
            arrays[name] = constants[name].values
    return arrays


def _is_source(name: str, constants: Constants) -> bool:
    """Whether a computed value is a weight itself, not one in another layout."""
    node = constants.producers[name]
    if node.op_type not in LAYOUTS:
        return True
    before = constants.producers.get(node.input[0])
    return before is not None and before.op_type in _DECODED


def _described(stored: Stored, constants: Constants) -> Stored:
    """With what the file says about how its elements are stored."""
    if stored.form == "columns":
        return stored
    constant = constants[stored.name]
    form = " ".join(sorted(constant.form)) or "dense"
    return replace(stored, bits=constant.bits, needed=constant.needed, form=form)


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
                result[site.name] = Stored(name, whole, same_layout=True, form="columns")
                break
    return result


def masked_input(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether the input of a convolution is multiplied by a constant: it may be an input mask."""
    return Reads(model, Constants(model)).factor(node) is not None


def _multiplied(model: onnx.ModelProto) -> set[str]:
    """Names that a product or a convolution reads, also through a change of layout."""
    names: set[str] = set()
    for node in reversed(model.graph.node):
        layout = node.op_type in LAYOUTS and names & set(node.output)
        if node.op_type in PRODUCTS or layout:
            names.update(node.input)
    return names


def _of_computed(
    sites: tuple[Site, ...], found: Mapping[str, Stored], arrays: Mapping[str, Array]
) -> dict[str, Stored]:
    """Weights that are computed in forward are constants in the file; known by name or size."""
    taken = {stored.name for stored in found.values()}
    free = {name: array for name, array in arrays.items() if name not in taken}
    result: dict[str, Stored] = {}
    for site in sites if any(site.computed for site in sites) else ():
        names = (site.name, f"{site.name}.weight", *free)
        fits = (n for n in names if n in free and free[n].size == site.size and site.computed)
        name = next(fits, None)
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
