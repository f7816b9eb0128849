"""Rules for single layers: which one, and how far a method may go there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from energy_model.errors import ArgumentError
from passes.graph import LayerRule, ModelGraph, Site

Selector = str | type[nn.Module] | Callable[[str, nn.Module], bool]
_KEYS = ("max_sparsity", "min_density")


def select_layers(graph: ModelGraph, layers: Mapping[Selector, Any] | None) -> dict[str, LayerRule]:
    """Turn the argument `layers` of `compress` into a rule per site.

    Args:
        graph: The traced model.
        layers: Selectors and rules. A selector is a name or a glob over names (`"classifier.*"`), a
            module class, or a function of (name, module). A rule is `False` (leave the layer
            alone), `True` (no rule), or a dict with `max_sparsity` or `min_density`. Later entries
            win over earlier ones.

    Raises:
        ArgumentError: A selector matches nothing, or a rule cannot be read.
    """
    if layers is not None and not isinstance(layers, Mapping):
        raise ArgumentError(
            f"{type(layers).__name__} is no mapping of layers to rules",
            where="layers",
            remedy="Write a dict such as {'features.*': False}.",
        )
    rules: dict[str, LayerRule] = {}
    for selector, value in (layers or {}).items():
        rule = _rule(selector, value)
        matched = [site.name for site in graph.compressible if _matches(graph, site, selector)]
        if not matched:
            names = ", ".join(site.name for site in graph.compressible)
            raise ArgumentError(
                f"{_shown(selector)} matches no layer",
                where="layers",
                remedy=f"The layers are {names}.",
            )
        rules.update(dict.fromkeys(matched, rule))
    return rules


def _matches(graph: ModelGraph, site: Site, selector: Selector) -> bool:
    if isinstance(selector, str):
        # Parts of attention have brackets in their names, which a glob would read as a class.
        return site.name == selector or fnmatchcase(site.name, selector)
    modules = [(path, graph.module.get_submodule(path)) for path, _ in site.owners]
    if isinstance(selector, type):
        return any(isinstance(module, selector) for _, module in modules)
    return any(bool(selector(path, module)) for path, module in modules)


def _rule(selector: Selector, value: Any) -> LayerRule:
    if isinstance(value, bool):
        return LayerRule(0.0 if value else 1.0)
    if isinstance(value, Mapping) and len(value) == 1:
        [(key, share)] = value.items()
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if key in _KEYS and number and 0 <= share <= 1:
            return LayerRule(1.0 - share if key == "max_sparsity" else float(share))
    raise ArgumentError(
        f"{value!r} is no rule",
        where=f"layers[{_shown(selector)}]",
        remedy=f"Write False, or a dict with one of {_KEYS} and a share from 0 to 1.",
    )


def _shown(selector: Selector) -> str:
    return repr(selector) if isinstance(selector, str) else getattr(selector, "__name__", "?")
