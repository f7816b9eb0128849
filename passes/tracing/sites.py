"""From observed products to sites: which parameter, which part of it, used how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from energy_model.input_support import InputSupport
from energy_model.shapes import LayerShape
from passes.graph import Leaf, Site, Use
from passes.tracing.observe import Product


@dataclass
class _Held:
    """A parameter and everything that holds it."""

    tensor: Tensor
    owners: list[tuple[str, str]]

    @property
    def path(self) -> str:
        module, attribute = self.owners[0]
        return f"{module}.{attribute}" if module else attribute


def held_parameters(model: nn.Module) -> list[_Held]:
    """Every parameter once, with all its owners, in order of registration."""
    held: dict[int, _Held] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                held.setdefault(id(parameter), _Held(parameter, [])).owners.append((path, name))
    return list(held.values())


@dataclass
class _Draft:
    name: str
    owners: tuple[tuple[str, str], ...]
    start: int
    size: int
    uses: dict[tuple[LayerShape, InputSupport | None], int]
    notes: list[str]
    computed: bool = False


def _extent(weight: Tensor) -> tuple[int, int, bool]:
    """First element and number of elements that a view covers, and whether it is all of them."""
    span = 1 + sum((n - 1) * abs(s) for n, s in zip(weight.shape, weight.stride(), strict=True))
    return int(weight.storage_offset()), int(span), span == weight.numel()


def _layer_name(path: str) -> str:
    return path.removesuffix(".weight")


class _Builder:
    """Collects products into drafts, one per distinct weight."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.by_storage: dict[int, list[_Held]] = {}
        for held in held_parameters(model):
            key = held.tensor.untyped_storage()._cdata
            self.by_storage.setdefault(key, []).append(held)
        self.drafts: dict[object, _Draft] = {}

    def _find(self, weight: Tensor) -> _Held | None:
        start, span, _ = _extent(weight)
        for held in self.by_storage.get(weight.untyped_storage()._cdata, ()):
            first = held.tensor.storage_offset()
            if first <= start and start + span <= first + held.tensor.numel():
                return held
        return None

    def add(self, product: Product) -> None:
        held = self._find(product.weight)
        draft = self._computed(product) if held is None else self._of_parameter(held, product)
        key = (product.shape, product.inputs)
        draft.uses[key] = draft.uses.get(key, 0) + product.count

    def _of_parameter(self, held: _Held, product: Product) -> _Draft:
        start, span, dense = _extent(product.weight)
        start -= int(held.tensor.storage_offset())
        notes = []
        whole = dense and span == held.tensor.numel()
        part = dense and held.tensor.is_contiguous()
        if not (whole or part) or product.shape.weights != span:
            start, span = 0, held.tensor.numel()
            notes.append("used through a strided view; charged as a whole")
        whole = span == held.tensor.numel()
        key = (id(held.tensor), start, span)
        if key not in self.drafts:
            name = _layer_name(held.path)
            if not whole:
                rows = held.tensor[0].numel()
                name += f"[{start // rows}:{(start + span) // rows}]"
            if len(held.owners) > 1:
                tied = ", ".join(f"{m}.{a}" if m else a for m, a in held.owners[1:])
                notes.append(f"tied with {tied}")
            self.drafts[key] = _Draft(name, tuple(held.owners), start, span, {}, notes)
        return self.drafts[key]

    def _computed(self, product: Product) -> _Draft:
        source = None if product.module else self._source(product)
        owner = product.module if source is None else id(source.tensor)
        key = ("computed", owner, tuple(product.weight.shape))
        if key not in self.drafts:
            note, size = "weight is computed in forward; not compressible", product.weight.numel()
            name = product.module or "(computed weight)"
            if source is not None:
                name = _layer_name(source.owners[0][0] or source.path)
                note = f"weight is computed in forward from {source.tensor.numel():,} parameters"
            self.drafts[key] = _Draft(name, (), 0, size, {}, [note], computed=True)
        return self.drafts[key]

    def _source(self, product: Product) -> _Held | None:
        """The parameter behind a weight that the model's own forward computes from it alone."""
        if product.source is None:
            return None
        held = self.by_storage.get(product.source.untyped_storage()._cdata, [])
        return held[0] if len(held) == 1 else None


def _merge_overlaps(drafts: list[_Draft]) -> list[_Draft]:
    """Where a parameter is used both as a whole and in parts, keep one site for all of it."""
    whole: dict[tuple[tuple[str, str], ...], _Draft] = {}
    for draft in drafts:
        parts = [d for d in drafts if d.owners == draft.owners and not d.computed]
        covered = sum(d.size for d in parts)
        extent = max((d.start + d.size for d in parts), default=0)
        if not draft.computed and covered > extent:
            biggest = max(parts, key=lambda d: d.size)
            whole[draft.owners] = biggest
    result = []
    for draft in drafts:
        target = whole.get(draft.owners)
        if target is None or target is draft:
            result.append(draft)
            continue
        for key, count in draft.uses.items():
            target.uses[key] = target.uses.get(key, 0) + count
        target.notes.append("used as a whole and in parts; parts are charged as the whole")
    return result


def build_sites(
    model: nn.Module, products: Sequence[Product], leaves: Sequence[Leaf]
) -> tuple[Site, ...]:
    """Group the products of one run by weight.

    Args:
        model: The model that was observed.
        products: What `observe` recorded.
        leaves: The opaque leaves; sites inside one say so.
    """
    builder = _Builder(model)
    for product in products:
        builder.add(product)
    sites: list[Site] = []
    taken: set[str] = set()
    for draft in _merge_overlaps(list(builder.drafts.values())):
        uses = tuple(Use(shape, count, inputs) for (shape, inputs), count in draft.uses.items())
        calls = sum(use.count for use in uses)
        notes = list(dict.fromkeys(draft.notes))
        if calls > 1:
            notes.append(f"{calls} uses")
        notes.extend(dict.fromkeys(str(use.inputs) for use in uses if use.inputs))
        leaf = next((leaf for leaf in leaves if _inside(draft, leaf.path)), None)
        if leaf is not None:
            notes.append(f"inside opaque leaf {leaf.path or '(the whole model)'}")
        name, number = draft.name, 1
        while name in taken:
            number += 1
            name = f"{draft.name}#{number}"
        taken.add(name)
        sites.append(
            Site(
                name,
                draft.owners,
                draft.start,
                draft.size,
                uses,
                "; ".join(notes),
                draft.computed,
                leaf is not None,
            )
        )
    return tuple(sites)


def _inside(draft: _Draft, path: str) -> bool:
    modules = [module for module, _ in draft.owners] or [draft.name]
    return not path or any(m == path or m.startswith(f"{path}.") for m in modules)
