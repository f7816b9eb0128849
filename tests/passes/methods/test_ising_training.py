"""A search in training: what is held, what is scored, and the moment when the channels go."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from ising_nets import OPTIMIZERS, AttentionNet, Searching, attention_data, conv_data, seeded

from passes.inputs import as_call
from passes.methods.ising import Ising
from passes.structure.state import cuts
from transform.fingerprint import state_digest

# The best state changes often, so that channels go and return.
LIVELY = {"states": 4, "noise": 0.2, "patience": 10**6, "search_share": 1.0}


def dropped_elements(live, bits):
    """By name of the parameter, which elements a state drops."""
    found = {}
    parameters = dict(live.graph.module.named_parameters())
    for cut in cuts(live.setting.groups, live.setting.layout.state(bits)):
        name = f"{cut.path}.{cut.attribute}"
        if name in parameters:
            mask = found.setdefault(name, torch.zeros_like(parameters[name], dtype=torch.bool))
            mask.transpose(0, cut.dim)[torch.from_numpy(~cut.keep)] = True
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_dropped_stays_bit_for_bit_and_gets_no_gradient(optimizer):
    training = Searching(Ising(**LIVELY), optimizer=optimizer)
    live, parameters = training.live, dict(training.graph.module.named_parameters())
    moved, changes = set(), 0
    for _ in range(20):
        bits = live.gates.bits
        masks = dropped_elements(live, bits)
        before = {name: parameters[name].detach().clone() for name in masks}
        training.backward()
        for name, mask in masks.items():
            assert (parameters[name].grad[mask] == 0).all()
            if (parameters[name].grad[~mask] != 0).any():
                moved.add(name)
        training.optimizer.step()
        training.optimizer.zero_grad()
        training.number += 1
        training.method.on_step(training.number, training.optimizer)
        for name, mask in masks.items():
            assert torch.equal(parameters[name].detach()[mask], before[name][mask])
            assert not torch.equal(parameters[name].detach()[~mask], before[name][~mask])
        changes += not torch.equal(bits, live.gates.bits)
    # Weight and bias of two layers and norms, and the weight of the last layer, which all learn.
    assert moved == set(masks) and len(masks) == 9
    assert changes > 3


def test_without_holding_what_is_dropped_would_move(monkeypatch):
    monkeypatch.setattr("passes.rewrite.held_slices.HeldSlices.restore", lambda self: None)
    training = Searching(Ising(every=1000, anneal=False))
    masks = dropped_elements(training.live, training.live.gates.bits)
    assert any(mask.any() for mask in masks.values())
    parameters = dict(training.graph.module.named_parameters())
    before = {name: parameters[name].detach().clone() for name in masks}
    training.steps(2)
    assert any(not torch.equal(parameters[n].detach()[m], before[n][m]) for n, m in masks.items())


def test_what_a_fit_to_the_original_has_changed_is_what_is_held():
    training = Searching(Ising(states=4, every=1000, anneal=False))
    masks = dropped_elements(training.live, training.live.gates.bits)
    parameters = dict(training.graph.module.named_parameters())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.01)
    training.method.on_reconstructed(training.graph, training.run)
    before = {name: parameters[name].detach().clone() for name in masks}
    training.steps(2)
    assert all(torch.equal(parameters[n].detach()[m], before[n][m]) for n, m in masks.items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_when_the_channels_go_the_next_step_is_that_of_the_gated_net(optimizer):
    """Loss and step of the compact net are those that the gated net would have had."""
    training = Searching(Ising(search_share=0.25), optimizer=optimizer)
    training.steps(9)
    training.backward()
    training.optimizer.step()
    training.optimizer.zero_grad()
    training.number += 1
    training.live.held.restore()
    twin = copy.deepcopy((training.graph, training.optimizer.state_dict()))
    taken = {}
    cut = training.method._cut

    def spied(graph, setting, units, optimizer=None):
        taken.update(setting=setting, bits=setting.bits(units))
        cut(graph, setting, units, optimizer)

    training.method._cut = spied
    training.method.on_step(training.number, training.optimizer)
    assert training.method.can_be_result()
    graph, state = twin
    for gate in (m for m in graph.graph_module.modules() if hasattr(m, "nodes")):
        row = torch.cat([taken["bits"], torch.ones(1, dtype=torch.bool)])
        gate.keep.copy_(row[gate.nodes])
    gated = OPTIMIZERS[optimizer](graph.module.parameters())
    gated.load_state_dict(state)
    names = dict(graph.module.named_parameters())
    for _ in range(3):
        x, y = training.data[training.number % len(training.data)]
        loss = F.cross_entropy(graph.graph_module(x), y)
        loss.backward()
        gated.step()
        gated.zero_grad()
        training.step()
        assert training.losses[-1] == pytest.approx(float(loss.detach()), abs=1e-5)
    kept = training.graph.kept
    for name, small in training.graph.module.named_parameters():
        whole, slots = names[name], gated.state[names[name]]
        for dim, index in kept.get(name, {}).items():
            index = torch.from_numpy(index)
            whole = whole.index_select(dim, index)
            slots = {
                k: v.index_select(dim, index) if v.dim() > dim else v
                for k, v in slots.items()
                if v is not None
            }
        assert torch.allclose(small, whole, atol=1e-5), name
        own = training.optimizer.state[small]
        assert len(own) == len(slots) > 0
        assert all(torch.allclose(own[k], v, atol=1e-5) for k, v in slots.items()), name


SCORED = [
    {},
    {"search": "de+ls", "energy": "combined", "norms": "batch"},
    {"search": "ratio-de", "energy": "distill", "backend": "fold"},
    {"energy": "ising", "search": "de+ls"},
    {"backend": "vmap", "importance": "taylor"},
    {"backend": "loop", "energy": lambda outputs, y: float(F.cross_entropy(outputs, y))},
]


@pytest.mark.spread(1)
@pytest.mark.parametrize("options", SCORED, ids=lambda o: "-".join(map(str, o)) or "default")
def test_generations_touch_neither_weights_nor_statistics(options):
    training = Searching(Ising(refresh=1, **LIVELY | options))
    training.steps(2)
    live = training.live
    for _ in range(2):
        training.backward()
        modules = list(training.graph.graph_module.modules())
        flags = [m.training for m in modules]
        # Gates follow the best state, nothing else changes.
        tensors = {n: t for n, t in _tensors(training.graph) if ".keep" not in n}
        before = {n: t.detach().clone() for n, t in tensors.items()}
        grads = [p.grad.clone() for p in training.graph.module.parameters()]
        random = torch.get_rng_state()
        training.method.on_step(training.number + 1, training.optimizer)
        assert all(torch.equal(t.detach(), before[n]) for n, t in tensors.items())
        after = [p.grad for p in training.graph.module.parameters()]
        assert all(map(torch.equal, grads, after))
        assert flags == [m.training for m in training.graph.graph_module.modules()]
        assert torch.equal(random, torch.get_rng_state())
        training.optimizer.zero_grad()
        training.number += 1
    assert live.search.generation == 4


def _tensors(graph):
    module = graph.graph_module
    return [*module.named_parameters(), *module.named_buffers()]


def test_every_state_is_within_the_budget_in_every_generation():
    training = Searching(Ising(anneal=False, **LIVELY), budget="macs<=40%, params<=35%")
    repair = training.live.setting.repair
    for _ in range(5):
        training.step()
        assert (repair.violations(training.live.search.population) == 0).all()


def test_an_annealed_budget_falls_to_its_limit():
    training = Searching(Ising(anneal=True, search_share=0.5, patience=10**6), steps=24)
    costs, macs = training.live.setting.repair, []
    while training.live is not None:
        values = costs.values(training.live.search.population)["macs"]
        macs.append(float(values.max()))
        training.step()
    limit = training.run.limits[0]
    allowed = [limit.base * (limit.maximum / limit.base) ** (n / 12) for n in range(12)]
    assert len(macs) == 12
    assert all(found <= most + 1 for found, most in zip(macs, allowed, strict=True))
    assert macs[1] > 1.2 * limit.maximum
    assert training.plan.allowed["macs"] == limit.maximum
    x, _ = training.data[0]
    assert training.graph.module(x).shape == (8, 4)


def test_generations_come_every_few_steps_and_follow_the_weights_when_due():
    training = Searching(Ising(every=3, refresh=2, energy="ising", search_share=1.0))
    seen, live = [], training.live
    refresh = live.refresh
    live.refresh = lambda *given: (seen.append(training.number), refresh(*given))
    generations = []
    for _ in range(9):
        training.step()
        generations.append(live.search.generation)
    assert generations == [0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert seen == [2, 4, 6, 8]


def test_importance_by_gradients_does_not_write_off_what_is_closed():
    training = Searching(Ising(importance="taylor", anneal=False, **LIVELY))
    training.live.refresh([], training.run.limits)
    closed = ~training.live.gates.bits
    assert closed.any()
    assert (training.live.scores[closed] > 0).all()


def test_a_search_that_is_over_ends_early():
    training = Searching(
        Ising(patience=2, noise=0.0, search_share=1.0, anneal=False, energy="ising")
    )
    for _ in range(40):
        training.step()
        if training.method.can_be_result():
            break
    assert training.number < 20
    [ended] = [d for d in training.graph.decisions if "search" in d.what]
    assert "the same for 2 generations" in ended.why or "differ in" in ended.why


def test_a_training_without_a_generation_takes_what_importance_chose():
    training = Searching(Ising(every=1000, search_share=0.1, anneal=False))
    units = training.live.setting.units(training.live.search.best)
    assert units == training.plan.details["units"]
    training.steps(4)
    assert training.method.can_be_result()
    assert training.method._units == units


def test_samples_of_one_class_are_skipped_and_said():
    data = [(x, torch.zeros_like(y)) if i % 2 else (x, y) for i, (x, y) in enumerate(conv_data(6))]
    training = Searching(Ising(search_share=1.0, patience=10**6), data=data)
    training.steps(6)
    told = training.method.report()["search"]
    assert (told["generation"], told["skipped"]) == (3, 3)
    # A function of the user is asked, whatever the classes are.
    own = Ising(energy=lambda outputs, y: float(outputs.mean()), **LIVELY)
    training = Searching(own, data=data)
    training.steps(6)
    assert training.method.report()["search"]["skipped"] == 0


def test_heads_are_gated_and_the_layers_of_torch_come_back():
    model = seeded(AttentionNet).eval()
    data, attention = attention_data(), model.attention
    training = Searching(Ising(**LIVELY), model=model, data=data, budget="macs<=60%")
    assert model.attention is not attention
    digest = state_digest(model)
    training.steps(3)
    live = training.live
    live.end()
    assert model.attention is attention
    assert state_digest(model) != digest
    call = as_call(model, data[0][0])
    assert torch.allclose(call(training.graph.graph_module), call(model), atol=1e-6)
