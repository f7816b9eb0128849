"""Reconstruction: every compressed layer is refitted to what the original's layer puts out.

Layer by layer, in the order of the forward pass,

    minimise  E |W x + b - y|^2 + ridge |W - W0|^2   over the W that the compression allows,

where x is what the compressed network, refitted so far, gives to the layer, and y what the layer
puts out in the original on the same inputs, so that a layer makes up for those before it. What is
allowed are the weights that a mask keeps, the levels of a grid, or all weights of what is left of a
layer that lost channels. The bias, or the running mean of a batch norm that follows, takes the
means. Batch norms get statistics with which they give the means and variances that the original's
give (`batch_norm.matched`).

He, Zhang, Sun, "Channel Pruning", ICCV 2017 (channels, asymmetric inputs); Hubara et al., ICML 2021
(layer-wise calibration); Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022 (masks and
levels; the mask here is what the method has chosen); Frantar et al., "GPTQ", ICLR 2023.

Complexity: about one forward pass of each model for each batch, n d^2 for the moments of a layer
with d inputs per output and n positions, and a Cholesky factorisation for each distinct mask of a
row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from energy_model.errors import PreconditionError
from passes.graph import Decision, ModelGraph
from passes.reconstruct.batch_norm import (
    Statistics,
    estimated,
    matched,
    running_norms,
    set_statistics,
    statistics,
    told,
)
from passes.reconstruct.config import Reconstruction
from passes.reconstruct.fit import Fit, fit_layer
from passes.reconstruct.moments import Moments, gather_moments
from passes.reconstruct.subjects import Subject, find_subjects, kept_channels
from passes.reconstruct.walk import Batches, Walk, at_rest, read_batches
from passes.tracing.symbolic import graph_module, trace_mode

# Relative errors below this are rounding: the layer is as the original's.
_EXACT = 1e-9


def reconstruct(
    original: nn.Module, graph: ModelGraph, batches: Batches, config: Reconstruction
) -> list[Decision]:
    """Refit a compressed model to its original on unlabelled batches, in place.

    Zeros stay zeros, shapes stay, and levels stay levels: of grids of the same widths and blocks,
    whose scales are fitted anew in `graph.encodings`. Besides, only weights, biases and running
    statistics change; modes, hooks and the global random state do not.

    Args:
        original: The model before compression, in the same module layout; not changed.
        graph: The compressed model. For layers that lost channels, `graph.kept` tells which are
            left.
        batches: Gives the inputs.
        config: What is done.

    Returns:
        For every layer what was done and the relative error before and after, or why nothing was.

    Raises:
        PreconditionError: There is no batch, the model fails on one, or a layer is given, or should
            put out, what is not finite; names the layer.
    """
    calls = read_batches(batches, config.batches)
    dense = None if graph.graph_module is None else _traced(original, graph)
    if graph.graph_module is None or dense is None:
        return [Decision("", "layers are not reconstructed", "the model could not be traced")]
    with at_rest(original, graph.module, graph.graph_module):
        samples = sum(call.batch_size or 1 for call in calls)
        run = _Run(graph, Walk(graph.graph_module, calls), Walk(dense, calls), config, samples)
        run.all_layers()
    for norm, found in run.statistics.items():  # for good, now that the buffers are put back
        set_statistics(norm, found)
    renewed = len(run.statistics) if config.batch_norm else 0
    return [*run.decisions, *told(renewed, len(calls))]


def _traced(original: nn.Module, graph: ModelGraph) -> GraphModule | None:
    with at_rest(original):
        trace = trace_mode(original, graph.call, graph.leaves)
        return None if trace.graph is None else graph_module(original, trace)


@dataclass
class _Run:
    """One walk along the compressed model and its original."""

    graph: ModelGraph
    walk: Walk
    dense: Walk
    config: Reconstruction
    samples: int
    decisions: list[Decision] = field(default_factory=list)
    statistics: dict[nn.Module, Statistics] = field(default_factory=dict)

    def all_layers(self) -> None:
        """Refit layers and batch norms in the order in which they run."""
        subjects: dict[Node, Subject] = {}
        if self.config.weights:
            subjects, self.decisions = find_subjects(self.graph, self.walk, self.dense)
        norms = set(running_norms(self.walk))
        for node in self.walk.nodes:
            if node in subjects:
                self._refit(subjects[node])
            elif node in norms and self.config.batch_norm:
                self._restate(node)

    def _refit(self, subject: Subject) -> None:
        name, layer = subject.site.name, subject.layer
        moments = gather_moments(layer, self._pairs(subject))
        if not bool(torch.isfinite(moments.xx).all() and torch.isfinite(moments.yx).all()):
            raise PreconditionError(
                "its inputs or outputs are not finite on the batches of data",
                where=name,
                remedy="Look for NaN or infinite values in the data and the weights.",
            )
        norm = self._norm_after(subject)
        if layer.bias is None and norm is None:
            moments = moments.about_zero()
        weight, ridge = layer.weight.detach(), self.config.damping / self.samples
        fit = fit_layer(weight, subject.prior, moments, subject.encoding, ridge)
        if fit.before <= _EXACT and torch.equal(weight, subject.prior):
            return
        layer.weight.copy_(fit.weight)
        if fit.encoding is not None:
            fit.encoding.check(layer.weight, name)
            self.graph.encodings[name] = fit.encoding
        if layer.bias is not None:
            layer.bias.copy_(fit.offset)
        elif norm is not None:
            self._absorb(norm, fit.offset)
        self.decisions.append(_told(name, moments, fit))

    def _pairs(self, subject: Subject) -> Iterator[tuple[Tensor, Tensor]]:
        rows, layer = subject.rows, subject.layer
        dim = -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)
        inputs, outputs = self.walk.inputs(subject.node), self.dense.outputs(subject.source)
        for x, y in zip(inputs, outputs, strict=True):
            yield x, y if rows is None else y.index_select(dim, rows.to(y.device))

    def _norm_after(self, subject: Subject) -> Node | None:
        """The batch norm that reads this layer alone, and can take its mean."""
        users = list(subject.node.users)
        flat = all(use.shape.positions == 1 for use in subject.site.uses)
        if len(users) != 1 or users[0] not in running_norms(self.walk):
            return None
        if isinstance(subject.layer, nn.Linear) and not flat:
            return None  # its features are not the channels of the norm
        return users[0] if self._source_of(users[0]) is not None else None

    def _source_of(self, norm: Node) -> Node | None:
        """The original's call of a norm, if it has the same channels or is known to have lost some.

        The norm of a layer's original reads the original's layer, as paths are the same.
        """
        calls = self.dense.calls_of(str(norm.target))
        if len(calls) != 1 or calls[0] not in running_norms(self.dense):
            return None
        left = kept_channels(self.graph, f"{norm.target}.running_mean")
        wide = len(self.dense.layer(calls[0]).running_mean)  # type: ignore[arg-type]
        now = len(self.walk.layer(norm).running_mean)  # type: ignore[arg-type]
        return calls[0] if (wide if left is None else len(left)) == now else None

    def _absorb(self, node: Node, offset: Tensor) -> None:
        """Subtract from a norm's mean what is to be added to its input."""
        source = self._source_of(node)
        if source is None:
            return
        norm, old = self.walk.layer(node), self.dense.layer(source)
        mean, left = old.running_mean, kept_channels(self.graph, f"{node.target}.running_mean")
        mean = mean if left is None else mean[left]  # type: ignore[index]
        variance: Tensor = norm.running_var  # type: ignore[assignment]
        moved = Statistics(mean.double() - offset, variance.double().clone(), 0)  # type: ignore[operator]
        self._set(norm, moved)

    def _restate(self, node: Node) -> None:
        """Give a batch norm statistics that fit what it is given now."""
        norm, name = self.walk.layer(node), str(node.target)
        given = statistics(self.walk.inputs(node), name)
        source = self._source_of(node)
        if source is None:
            self._set(norm, estimated(norm, given))
            return
        left = kept_channels(self.graph, f"{name}.running_mean")
        wanted = statistics(self.dense.inputs(source), name).part(left)
        self._set(norm, matched(given, self.dense.layer(source), wanted, left))

    def _set(self, norm: nn.Module, found: Statistics) -> None:
        set_statistics(norm, found)
        self.statistics[norm] = found


def _told(name: str, moments: Moments, fit: Fit) -> Decision:
    cols = moments.xx.shape[-1]
    why = f"fitted to {moments.count} rows of inputs"
    if moments.count < cols:
        why += f", fewer than its {cols} columns: damping decides the rest"
    before, after = (f"error {error:.3g}" for error in (fit.before, fit.after))
    return Decision(name, "reconstructed", why, before, after)
