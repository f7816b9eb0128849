"""Tied weights as a method: every layer takes its weights from a small bank.

Chen et al., "Compressing neural networks with the hashing trick", ICML 2015; Mostafa and Wang,
ICML 2019, as the baseline of dynamic sparse reparameterization:

    minimise the loss over banks w_l of K_l entries,  W_l[i] = xi_l(i) w_l[h_l(i)],
    so that  parameters of the model = what is in no bank + sum of K_l <= budget

All layers get the same share of their weights as entries. The model computes as much as before:
what shrinks is what it holds. Changed: initial values keep the variance of the layer, the gradient
is divided before the optimizer's step if that is asked for, and no index is stored: it is a
function of a key, in saved results as in exported files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from energy_model.cost import CostTable
from energy_model.resolved import ResolvedLimit
from passes.dynamic.random_keys import key_of, uniform_keys
from passes.dynamic.start_masks import START_EVENT
from passes.dynamic.tied_bank import TiedBank, attach_bank, rescale_gradient
from passes.graph import Decision, ModelGraph
from passes.methods.base import Method, MethodSpec, Run
from passes.methods.config import MethodConfig
from passes.methods.plan import Plan, PlanRow
from passes.methods.tied.banks import BankSize, BankSizes, bank_sizes
from passes.methods.tied.config import TiedWeights
from passes.rewrite.tied_weights import write_banks

SERVES = frozenset({"params"})
_TIED = "tied"


class WeightTying(Method):
    """Replaces weights by lookups in banks, and trains the banks."""

    config: TiedWeights

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self._banks: list[tuple[BankSize, TiedBank, Tensor]] = []

    def plan(
        self,
        graph: ModelGraph,
        costs: CostTable,
        limits: Sequence[ResolvedLimit],
        *,
        one_shot: bool = True,
    ) -> Plan:
        """How many entries the bank of every layer has; see `Method.plan`."""
        sizes = bank_sizes(graph, limits, self.config)
        rows = {bank.site.name: _row(bank, self.config) for bank in sizes.banks}
        for site in graph.compressible:
            rows.setdefault(
                site.name, PlanRow(site.name, site.size, site.size, sizes.alone.get(site.name, ""))
            )
        allowed = {limit.key: limit.maximum for limit in limits}
        reached = dict.fromkeys(allowed, sizes.parameters)
        return Plan(SPEC.name, tuple(rows.values()), reached, allowed)

    def prepare(self, graph: ModelGraph, plan: Plan, run: Run) -> None:
        """Put banks in the place of weights."""
        sizes = bank_sizes(graph, run.limits, self.config)
        seed = int(torch.randint(2**62, (), generator=run.generator))
        start = self.config.start or ("mean" if run.one_shot else "draw")
        for bank in sizes.banks:
            if bank.ties:
                self._attach(graph, bank, seed, start)
        graph.decisions += self._told(graph, sizes)
        tied = {bank.site.name for bank, _, _ in self._banks}
        # What is looked up has no weights of its own that others could count or change.
        graph.sites = tuple(replace(s, computed=s.computed or s.name in tied) for s in graph.sites)

    def _attach(self, graph: ModelGraph, size: BankSize, seed: int, start: str) -> None:
        name, parameter = size.site.name, graph.parameter(size.site)
        bank = TiedBank(
            tuple(parameter.shape),
            size.buckets,
            key_of(seed, START_EVENT, f"{name}/index"),
            dealing=self.config.dealing,
            sign_key=key_of(seed, START_EVENT, f"{name}/sign") if self.config.signs else None,
            leading=size.leading,
        )
        values = key_of(seed, START_EVENT, f"{name}/values")
        drawn = _drawn(parameter.detach(), values) if start == "draw" else None
        attach_bank(graph, size.site, bank, drawn)
        self._banks.append((size, bank, parameter))

    def _told(self, graph: ModelGraph, sizes: BankSizes) -> list[Decision]:
        told = [Decision(name, "not tied", why) for name, why in sizes.alone.items()]
        whole = [bank.site.name for bank in sizes.banks if not bank.ties]
        told += [Decision(name, "not tied", "its bank would be no smaller") for name in whole]
        for size, bank, _ in self._banks:
            stored = _index_bytes(bank) if self.config.index == "stored" else 0
            why = f"each is taken by {bank.repeats:.4g} {_cells(size)}; bytes of index in a file: "
            after = f"{size.buckets:,} entries"
            if (used := bank.unique_parameters) < size.parameters:
                after += f", {size.buckets - used // size.shape.block:,} of them taken by none"
            before = f"{size.site.size:,} weights"
            told.append(
                Decision(size.site.name, f"{_TIED}: {after}", f"{why}{stored:,}", before, after)
            )
        return told

    def on_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients of the banks, if asked to."""
        for _, bank, parameter in self._banks if self.config.rescale_gradient else ():
            if parameter.grad is not None:
                parameter.grad = rescale_gradient(parameter.grad, bank)

    def finalize(self, graph: ModelGraph, run: Run) -> None:
        """Make every lookup a node of the graph."""
        if self._banks:
            sites = [size.site for size, _, _ in self._banks]
            write_banks(graph, sites, stored_index=self.config.index == "stored")

    def needs_shapes(self) -> str:
        """A bank has no channels that could go."""
        return "weights are looked up in banks, which have no channels" if self._banks else ""

    def claims(self, key: str) -> bool:
        """In a list, parameters are for this method; one before it may remove channels for less."""
        return key in SERVES


def _row(bank: BankSize, config: TiedWeights) -> PlanRow:
    why = f"{config.dealing}, an entry for {bank.shape.cells / bank.buckets:.4g} {_cells(bank)}"
    return PlanRow(bank.site.name, bank.site.size, bank.parameters, why if bank.ties else "whole")


def _cells(bank: BankSize) -> str:
    return "weights" if bank.leading is None else "kernels"


def _drawn(weight: Tensor, key: int) -> Callable[[TiedBank], Tensor]:
    """First values of a bank: cells of the weight at random, no cell twice."""

    def values(bank: TiedBank) -> Tensor:
        cells = weight.reshape(-1, *bank.entry)
        order = torch.argsort(uniform_keys(key, len(cells)))[: bank.buckets]
        return cells[order.to(weight.device)].clone()

    return values


def _index_bytes(bank: TiedBank) -> int:
    """Of a stored index: the narrowest unsigned type that holds it."""
    largest = bank.buckets * (1 if bank.sign is None else 2) - 1
    return math.prod(bank.index.shape) * np.min_scalar_type(largest).itemsize


SPEC = MethodSpec(
    name="hashed",
    config=TiedWeights,
    method=WeightTying,
    serves=SERVES,
    source="Chen et al., ICML 2015; Mostafa, Wang, ICML 2019 (tied weights)",
    keeps=frozenset({"shapes"}),
    gives=frozenset({_TIED}),
)
