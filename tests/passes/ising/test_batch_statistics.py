"""Batch norms by the statistics of their own samples."""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F

from passes.ising.batch_statistics import BatchStatistics, _what_counts
from passes.rewrite.gate_context import GateContext


def test_arguments_are_read_as_torch_reads_them():
    ours, theirs = (inspect.signature(f).parameters for f in (_what_counts, F.batch_norm))
    assert list(ours) == list(theirs)
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]


def test_calls_of_every_form_use_the_samples_and_update_nothing():
    generator = torch.Generator().manual_seed(0)
    x, mean, weight, bias = (
        torch.rand(size, generator=generator) for size in ((5, 3, 4), (3,), (3,), (3,))
    )
    before, var = mean.clone(), torch.ones(3)
    calls = [
        lambda: F.batch_norm(x, mean, var, weight, bias, False, 0.1, 0.01),
        lambda: F.batch_norm(x, mean, var, bias=bias, weight=weight, eps=0.01),
        lambda: F.batch_norm(input=x, running_mean=mean, running_var=var, training=True),
    ]
    expected = [
        F.batch_norm(x, None, None, weight, bias, True, eps=0.01),
        F.batch_norm(x, None, None, weight, bias, True, eps=0.01),
        F.batch_norm(x, None, None, training=True),
    ]
    with BatchStatistics(GateContext()):
        found = [call() for call in calls]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(mean, before)
    assert torch.equal(var, torch.ones(3))
    assert not torch.equal(found[0], calls[0]())
