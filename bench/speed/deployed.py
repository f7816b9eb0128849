"""Files in ONNX Runtime, one thread: what fewer channels and column groups are worth."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import nn

import transform
from bench.measure import measure
from bench.speed.ratio import Outcome, Ratio
from bench.speed.rounds import Settings
from bench.speed.subjects import Subject

CHANNELS_TARGET = 1 / 3
COLUMNS_TARGET = 0.5
_QUIET = partial(transform.compress, progress="none")


def measure_half_channels(subject: Subject, settings: Settings) -> Outcome:
    """Time the file of a model without half of its channels over that of the whole model.

    Args:
        subject: The model.
        settings: How to measure; light rounds.
    """
    model, example = subject.model(), subject.example()
    found = transform.structure(model, example)
    half = found.shrunk(found.random_state(0))
    with tempfile.TemporaryDirectory(prefix="transform-speed-") as folder:
        files = [Path(folder) / "whole.onnx", Path(folder) / "half.onnx"]
        for file, each in zip(files, (model, half), strict=True):
            _QUIET(each, "macs<=100%", example_inputs=example).export(file)
        pairs = _pairs(files, settings, batch=1)
    name = f"{subject.name} with half its channels, ONNX Runtime, 1 thread"
    return Outcome((Ratio(name, "all channels", CHANNELS_TARGET, pairs),))


def measure_column_groups(settings: Settings, width: int = 4096, rows: int = 512) -> Outcome:
    """Time a linear layer of which each group of rows keeps a tenth of the columns, over dense.

    Args:
        settings: How to measure; light rounds.
        width: Inputs and outputs of the layer.
        rows: Rows of a group.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # inside a fork of the random state
        layer = nn.Sequential(nn.Linear(width, width)).eval()
    method = transform.Magnitude(pattern=f"column_groups:{rows}")
    example = torch.zeros(1, width)
    result = _QUIET(layer, "nonzeros<=10%", example_inputs=example, method=method)
    ratios = []
    with tempfile.TemporaryDirectory(prefix="transform-speed-") as folder:
        files = [Path(folder) / "dense.onnx", Path(folder) / "groups.onnx"]
        for file, form in zip(files, ("dense", "column_groups"), strict=True):
            result.export(file, form=form)
        for batch in (1, 16):
            pairs = _pairs(files, settings, batch)
            name = f"linear layer {width} x {width}, column groups, 10 % kept, batch {batch}"
            ratios.append(Ratio(name, "dense file", COLUMNS_TARGET, pairs))
    return Outcome(tuple(ratios))


def _pairs(files: list[Path], settings: Settings, batch: int) -> tuple[tuple[float, float], ...]:
    """Seconds of the second and of the first file, in each round."""
    first, second = measure(
        files, threads=1, batch=batch, rounds=settings.light_rounds
    ).measurements
    rounds = zip(second.round_ms, first.round_ms, strict=True)
    return tuple((own / 1000, base / 1000) for own, base in rounds)
