"""Whole networks: gated, folded, mapped, sliced and cut agree."""

from __future__ import annotations

import pytest
import torch
from scoring_nets import fingerprint, gated, population, seeded
from slicing import relative_error, shrunk, traced

from bench.zoo.cifar_resnet import resnet20
from passes.ising.agreement import relative_difference
from passes.ising.choose_backend import make_scorings
from passes.torchvision_shim import ensure_torchvision_importable

pytestmark = pytest.mark.slow

ensure_torchvision_importable()
models = pytest.importorskip("torchvision.models")


def build(name):
    if name == "resnet20":
        return resnet20().eval()
    return models.get_model_builder(name)(weights=None, num_classes=10).eval()


def images(side, dtype):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, side, side, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(
    ("name", "side"),
    [("resnet20", 32), ("resnet18", 32), ("mobilenet_v2", 64), ("squeezenet1_1", 64)],
)
def test_all_agree(name, side):
    gates, graph, call = gated(seeded(lambda: build(name)), images(side, torch.float32))
    before = fingerprint(graph.runnable)
    single, _, single_call = gated(
        seeded(lambda: build(name)), images(side, torch.float32), dtype=torch.float32
    )
    states = population(gates)
    for norms in ("running", "batch"):
        expected, *others = (s.outputs(states, call, norms) for s in make_scorings(gates).values())
        assert all(relative_difference(found, expected) < 1e-10 for found in others)
        expected, *others = (
            s.outputs(states, single_call, norms) for s in make_scorings(single).values()
        )
        # Norms that divide by the spread of a few samples make rounding larger.
        most = 1e-5 if norms == "running" else 2e-4
        assert all(relative_difference(found, expected) < most for found in others)
    assert fingerprint(graph.runnable) == before
    plain, groups = traced(seeded(lambda: build(name)), images(side, torch.float64))
    scored = make_scorings(gates)["compact"].outputs(states[:2], call)
    for bits, found in zip(states, scored, strict=False):
        small = shrunk(plain, groups, gates.layout.state(bits))
        with torch.no_grad():
            expected = small.graph_module(call.args[0])
        assert relative_error(found, expected) < 1e-10
