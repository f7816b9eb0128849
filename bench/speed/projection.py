"""Projection of all weights at once against one `torch.sort` of the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from bench.speed.ratio import Check, Outcome, Ratio
from bench.speed.reference import SortedWeights
from bench.speed.rounds import Settings, clocked, interleave, over_first
from bench.speed.subjects import Subject, concatenated
from passes.methods.problem import Problem
from passes.projection.allocate import allocate
from passes.projection.fill import fill
from passes.projection.magnitudes import histogram, top_mask

TARGET = 0.15
BUDGETS = ("energy<=25%", "energy<=50%")


def project(problem: Problem) -> tuple[Tensor, ...]:
    """The whole projection, from weights to one boolean mask per layer; nothing is reused."""
    histograms = [histogram(weight) for weight in problem.weights]
    prefix = allocate(problem.weights, problem.ladders, problem.capacities, histograms=histograms)
    chosen = fill(prefix, problem.weights, problem.ladders, histograms)
    parts = zip(problem.weights, chosen.counts, histograms, strict=True)
    return tuple(top_mask(weight, count, counted) for weight, count, counted in parts)


def measure_projection(
    subject: Subject, settings: Settings, budgets: Sequence[str] = BUDGETS
) -> Outcome:
    """Time the projection onto each budget, and compare what it keeps with the full sort.

    Args:
        subject: The model.
        settings: How to measure.
        budgets: What it is projected onto; they share the rounds and the sort.
    """
    problems = [subject.problem(budget) for budget in budgets]
    flat = concatenated(problems[0])
    turns = [clocked(partial(torch.sort, flat))]
    turns += [clocked(partial(project, problem)) for problem in problems]
    rounds = interleave(turns, settings.rounds)
    del flat
    sorted_weights = SortedWeights(problems[0].weights)
    ratios, checks = [], []
    for position, (problem, budget) in enumerate(zip(problems, budgets, strict=True), start=1):
        name = f"projection of {subject.name}, {budget}"
        ratios.append(Ratio(name, "torch.sort", TARGET, over_first(rounds, position)))
        reference = sorted_weights.project(problem.ladders, problem.capacities)
        checks.append(same_kept(name, project(problem), reference))
    return Outcome(tuple(ratios), tuple(checks))


def same_kept(name: str, kept: Sequence[Tensor], reference: Sequence[Tensor]) -> Check:
    """Whether two projections keep the same weights, with how many and how many differ."""
    differing = sum(int((a ^ b).sum()) for a, b in zip(kept, reference, strict=True))
    count = sum(int(mask.sum()) for mask in kept)
    size = sum(mask.numel() for mask in kept)
    detail = f"{count:,} of {size:,} weights kept, {differing:,} differ"
    return Check(f"{name}: same kept set as the full sort", differing == 0, detail)
