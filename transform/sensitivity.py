"""`transform.sensitivity`: which layer's weights are missed least for what they cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from energy_model.errors import ArgumentError, PreconditionError
from energy_model.hardware import Hardware, load_hardware
from passes.graph import LayerRule, ModelGraph, Site
from passes.inputs import as_call
from passes.isolation import copied
from passes.projection.magnitudes import histogram
from passes.selectors import Selector, select_layers
from passes.tracing.trace import trace
from transform import arguments
from transform.evaluate import Metric
from transform.progress import Mode, Progress
from transform.require import require_model
from transform.sensitivity_measure import Meter, Score, read_batches, zeroed
from transform.sensitivity_table import Sensitivity, SensitivityRow
from transform.training.losses import Loss
from transform.training.randomness import seeded


def sensitivity(
    model: nn.Module,
    data: Iterable[Any],
    *,
    example_inputs: Any = None,
    loss: Loss | None = None,
    metric: Metric | None = None,
    hardware: str | Path | Mapping[str, Any] | Hardware = "eyeriss",
    sparsity: float | Iterable[float] = (0.5,),
    layers: Mapping[Selector, Any] | Selector | Sequence[Selector] | None = None,
    device: str | torch.device | None = None,
    batches: int | None = None,
    progress: Mode | bool = "auto",
) -> Sensitivity:
    """Rank the layers of a model by how much the loss rises for what pruning them saves.

    One layer at a time, the weights of smallest magnitude are zeroed, the loss is measured, and the
    weights are put back. The caller's model, its modes and the global random state are left as they
    were: all work is done on a copy. Layers are pruned alone, so that the changes need not add up.

    Args:
        model: Any PyTorch model.
        data: Batches, as for `transform.compress`. They are read once and kept in memory, so that
            every layer is measured on the same ones, of shuffled or augmented data too. Without
            targets the loss is the relative change of the outputs, `||f'(x) - f(x)||^2 /
            ||f(x)||^2`. Whoever chooses by the result must not pass the test set.
        example_inputs: What the model is called with; the first batch by default.
        loss: Function of (outputs, targets), averaged over samples; cross entropy by default.
        metric: As for `transform.compress`; top-1 accuracy by default.
        hardware: Profile of the energy model: a name, a YAML file, a mapping or a `Hardware`.
        sparsity: Share of a layer's weights to zero, in (0, 1], or several; a count is rounded
            down. Weights that are zero already belong to the share.
        layers: Which layers: a glob, a module class, a function of (name, module), or a list of
            them; or rules as for `transform.compress`, where `False` leaves a layer out, and
            sparsities beyond `max_sparsity` are not tried there.
        device: Where to work; `None` means where the model is.
        batches: How many batches to read; `None` is all.
        progress: `"auto"`, `"bar"`, `"log"` or `"none"`.

    Returns:
        A table that prints; `.rows`, `.ranked(by)`, `.to_dict()` and `.plot(path)`.

    Raises:
        ArgumentError: An argument is malformed, there is no data, a pattern matches no layer, or
            the loss is not finite.
        PreconditionError: A weight is NaN or infinite, or there is no layer to prune.
        TraceError: The model fails on its example inputs.
        HardwareError: Unknown or malformed profile.
    """
    require_model(model)
    shares, profile = _shares(sparsity), load_hardware(hardware)
    place, show = arguments.find_device(model, device), Progress(progress)
    with seeded(0, place):  # data loaders draw from the global generators
        with show.stage("reading the data"):
            read = read_batches(model, data, batches)
        call = read[0].call if example_inputs is None else as_call(model, example_inputs)
        with show.stage("tracing the model"):
            graph = trace(copied(model, place), call.to(place), train=False)
        chosen = _chosen(graph, layers, shares)
        with show.stage("measuring the model as it is"):
            meter = Meter(graph.module, read, place, loss, metric)
            before = meter.measure()
        rows: list[SensitivityRow] = []
        for number, (site, allowed) in enumerate(chosen, start=1):
            with show.stage(f"measuring {site.name} ({number} of {len(chosen)})"):
                rows += _measured(graph, site, allowed, meter, before, profile)
    named = meter.metric_name if before.metric is not None else None
    return Sensitivity(tuple(rows), profile, meter.loss_name, named, meter.samples)


def _measured(
    graph: ModelGraph,
    site: Site,
    shares: Sequence[float],
    meter: Meter,
    before: Score,
    hardware: Hardware,
) -> Iterator[SensitivityRow]:
    """The rows of one layer."""
    weight, price = graph.weight(site), site.price(hardware)
    counts = histogram(weight, site.name)
    macs = sum(use.count * (use.shape.macs // use.shape.weights) for use in site.uses)
    for share in shares:
        with zeroed(weight, _count(share, site), counts) as removed:
            after = meter.measure(site.name) if removed else before
        yield SensitivityRow(
            layer=site.name,
            sparsity=share,
            weights=site.size,
            removed=removed,
            loss_before=before.loss,
            loss_after=after.loss,
            metric_before=before.metric,
            metric_after=after.metric,
            bytes=removed * weight.element_size(),
            energy=price.energy(counts.nonzeros) - price.energy(counts.nonzeros - removed),
            macs=removed * macs,
            note=site.note,
        )


def _count(share: float, site: Site) -> int:
    """Weights to zero."""
    # A share such as 0.1 is not exact in binary: 0.7 of 10 weights is 7, not 6.
    return math.floor(round(share * site.size, 6))


def _shares(sparsity: Any) -> tuple[float, ...]:
    several = isinstance(sparsity, Iterable) and not isinstance(sparsity, str)
    values = tuple(sparsity) if several else (sparsity,)
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value <= 1:
            raise ArgumentError(
                f"{value!r} is no share of the weights",
                where="sparsity",
                remedy="Pass numbers above 0 and up to 1: 0.5 zeroes half of a layer.",
            )
    if not values:
        raise ArgumentError("no sparsity", where="sparsity", remedy="Pass at least one, e.g. 0.5.")
    return tuple(dict.fromkeys(map(float, values)))


def _chosen(
    graph: ModelGraph, layers: Any, shares: Sequence[float]
) -> list[tuple[Site, list[float]]]:
    """The layers to prune, and what their rules allow to zero."""
    if not graph.compressible:
        raise PreconditionError(
            "every weight is computed in forward (weight normalisation or the like), so that none "
            "can be pruned",
            where=type(graph.module).__name__,
            remedy="Merge the reparametrization first: remove_parametrizations(layer, 'weight').",
        )
    rules = {site.name: LayerRule() for site in graph.compressible}
    if layers is None or isinstance(layers, Mapping):
        rules |= select_layers(graph, layers)
    else:
        rules = select_layers(graph, dict.fromkeys(_selectors(layers), True))
    pairs = []
    for site in graph.compressible:
        if site.name in rules and rules[site.name].min_density < 1:
            most = site.size - rules[site.name].least(site.size)
            pairs.append((site, [s for s in shares if _count(s, site) <= most]))
    if not any(allowed for _, allowed in pairs):
        raise ArgumentError(
            "no layer is left to prune", where="layers", remedy="Allow more, or a smaller sparsity."
        )
    for site, _ in pairs:
        histogram(graph.weight(site), site.name)  # raises here, where the layer can be named
    return [(site, allowed) for site, allowed in pairs if allowed]


def _selectors(layers: Any) -> list[Selector]:
    several = isinstance(layers, Sequence) and not isinstance(layers, str)
    selectors = list(layers) if several else [layers]
    for selector in selectors:
        if not isinstance(selector, str) and not callable(selector):
            raise ArgumentError(
                f"{type(selector).__name__} selects no layers",
                where="layers",
                remedy="Pass globs, module classes or functions, or a dict of rules.",
            )
    return selectors
