"""The six networks of the published table: states, one generation of a search, and one cut."""

from __future__ import annotations

import pytest
import torch
from scoring_nets import fingerprint
from slicing import randomize, relative_error
from torch import nn

from energy_model.budget import Budget
from energy_model.hardware import load_hardware
from energy_model.resolved import ResolvedLimit
from passes.analysis.costs import cost_table
from passes.inputs import Batch, as_call
from passes.ising.logit_energies import margin
from passes.methods.ising.config import Ising
from passes.methods.ising.energies import CandidateEnergies
from passes.methods.ising.search import KeepStateSearch
from passes.methods.ising.setting import Setting
from passes.rewrite.live_gates import attach_gates, detach_gates
from passes.rewrite.shrink import shrink
from passes.torchvision_shim import ensure_torchvision_importable
from passes.tracing.trace import trace

ensure_torchvision_importable()
models = pytest.importorskip("torchvision.models")

CLASSES = 102
# Bits of a keep-state in the authors' table, and free channels.
NODES = {
    "resnet18": (6208, 2880),
    "resnet34": (9920, 4736),
    "resnet50": (32448, 11456),
    "resnet101": (58560, 20160),
    "alexnet": (18662, 9344),
    "squeezenet1_1": (3558, 2944),
}
FAST = {"squeezenet1_1"}
NETWORKS = [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in NODES]
HARDWARE = load_hardware("eyeriss")


def build(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.get_model_builder(name)(weights=None, num_classes=CLASSES).eval()


def authors_nodes(model):
    """A bit for each filter, a second one where it has a shortcut's norm, and one for each input.

    Inputs are those of linear layers, or of the convolution that is the classifier; AlexNet's
    outputs have bits that are always one.
    """
    layers = dict(model.named_modules())
    filters = {p: m.out_channels for p, m in layers.items() if isinstance(m, nn.Conv2d)}
    shortcuts = sum(count for path, count in filters.items() if "downsample" in path)
    linear = [layer for layer in layers.values() if isinstance(layer, nn.Linear)]
    inputs = sum(layer.in_features for layer in linear) or layers[[*filters][-1]].in_channels
    outputs = linear[-1].out_features if len(linear) > 1 else 0
    return sum(filters.values()) + shortcuts + inputs + outputs


@pytest.mark.spread(2)
@pytest.mark.parametrize("name", NODES)
def test_their_states_are_larger(name):
    with torch.device("meta"):
        model = models.get_model_builder(name)(weights=None, num_classes=CLASSES)
    theirs, ours = NODES[name]
    assert authors_nodes(model) == theirs > ours


def macs(graph):
    return cost_table(graph, HARDWARE).total.macs


@pytest.mark.parametrize("name", NETWORKS)
def test_a_generation_and_a_cut(name):
    model = randomize(build(name))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 64, 64, generator=generator)
    batch = Batch(as_call(model, images), torch.tensor([0, 1, 2, 1]))
    graph = trace(model, batch.call, train=False)
    limit, before = Budget.parse("macs<=50%").limits[0], macs(graph)
    limits = (ResolvedLimit(limit, before, before // 2),)
    config = Ising(states=4, backend="compact", score_share=1.0, norms="running")
    setting = Setting.of(graph, HARDWARE, limits, config)
    assert setting.layout.nodes == NODES[name][1]
    gates = attach_gates(graph, setting.groups, setting.layout)
    untouched = fingerprint(graph.runnable)

    search = KeepStateSearch(setting.repair, config, generator)
    energies = CandidateEnergies(graph, setting, gates, config, generator)
    scores = setting.scores(graph, config, None)
    search.begin(scores, limits)
    search.advance(energies.on(batch), scores, limits)
    assert fingerprint(graph.runnable) == untouched
    assert search.energies.isfinite().all()
    assert search.energies.min() == energies.on(batch)(search.best[None])[0]
    costs = setting.repair.values(search.population)["macs"]
    assert (costs <= before // 2).all()
    best, reached = search.best, setting.repair.values(search.best[None])["macs"][0]

    with torch.no_grad():
        whole = batch.call(graph.runnable)
        gates.set(best)
        gated = batch.call(graph.runnable)
    assert relative_error(whole, gated) > 1e-3
    assert search.energies.min() == pytest.approx(
        float(margin(gated[None], batch.targets)), rel=1e-3
    )
    detach_gates(graph, gates)
    shrink(graph, setting.groups, setting.layout.state(best))
    with torch.no_grad():
        assert relative_error(batch.call(graph.runnable), gated) < 1e-4
    assert macs(graph) == reached
