"""The verbs of the public surface: `compress` against one sort, `analyze` against one forward."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

import transform
from bench.speed.ratio import Outcome, Ratio
from bench.speed.rounds import Settings, clocked, interleave, over_first
from bench.speed.subjects import Subject, concatenated

COMPRESS_TARGET = 1.0
ANALYZE_TARGET = 5.0


def measure_compress(subject: Subject, settings: Settings, budget: str = "energy<=25%") -> Outcome:
    """Time one-shot compression, everything included, over one `torch.sort` of the same weights.

    Args:
        subject: The model.
        settings: How to measure.
        budget: What it is compressed to.
    """
    model, example = subject.model(), subject.example()
    flat = concatenated(subject.problem(budget))
    compress = partial(transform.compress, model, budget, example_inputs=example, progress="none")
    rounds = interleave([clocked(partial(torch.sort, flat)), clocked(compress)], settings.rounds)
    name = f"transform.compress({subject.name}, {budget!r})"
    return Outcome((Ratio(name, "torch.sort", COMPRESS_TARGET, over_first(rounds, 1)),))


def measure_analyze(subject: Subject, settings: Settings) -> Outcome:
    """Time `transform.analyze` over one forward pass at batch 1 in evaluation mode.

    Args:
        subject: The model.
        settings: How to measure.
    """
    model, example = subject.model(), subject.example()
    turns = [
        clocked(partial(_forward, model, example)),
        clocked(partial(transform.analyze, model, example)),
    ]
    interleave(turns, 1)  # the first forward pass prepares kernels
    rounds = interleave(turns, settings.light_rounds)
    name = f"transform.analyze({subject.name})"
    return Outcome((Ratio(name, "a forward pass", ANALYZE_TARGET, over_first(rounds, 1)),))


def _forward(model: nn.Module, example: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(example)
    return output
