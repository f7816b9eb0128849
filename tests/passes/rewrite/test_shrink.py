"""A shrunk model is an ordinary smaller one, in every respect."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import structure_nets as nets
import torch
import torch.nn.functional as F
from slicing import numbers, outputs, random_state, randomize, relative_error, shrunk, traced
from structure_nets import Constant, Multihead, Net, Residual, Tied, Words, image
from torch import nn

from energy_model.hardware import load_hardware
from export.dense import write_dense
from passes.graph import LayerRule
from passes.inputs import as_call
from passes.quantize.encoding import Encoding
from passes.rewrite.gates import insert_gates
from passes.rewrite.input_masks import attach_input_masks
from passes.rewrite.shrink import shrink
from passes.storage.graph_json import graph_from_json, graph_state, graph_to_json
from passes.structure.groups import channel_groups
from passes.structure.state import cuts, full_state
from passes.tracing.trace import trace

IMAGE_NETS = (
    "Residual", "Concat", "Chunk", "SplitBySize", "Halves", "Depthwise", "Shuffle",
    "SqueezeExcite", "Transposed", "Pad", "Flat", "Tied", "Functional", "Scaled", "Constant",
    "FrozenNorm", "Grouped", "PixelShuffle", "Upsampled", "Gated", "Attention", "Multihead",
    "Mixer",
)  # fmt: skip


def built(name, seed=0):
    torch.manual_seed(seed)
    return randomize(getattr(nets, name)())


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", [name for name in IMAGE_NETS if name != "Constant"])
def test_gated_and_shrunk_agree_in_single_precision(name):
    model, x = built(name).float(), image().float()
    graph = trace(model.eval(), as_call(model, x))
    groups = channel_groups(graph)
    for seed in (0, 1):
        state = random_state(groups, seed)
        expected = outputs(insert_gates(graph, groups, state), [x])
        small = shrunk(graph, groups, state)
        assert relative_error(outputs(small.runnable, [x]), expected) < 1e-4


@pytest.mark.spread(3)
@pytest.mark.parametrize("name", IMAGE_NETS)
def test_every_layer_is_as_if_it_had_been_built_so(name):
    """Storage rebuilds layers from the numbers that they tell, and compares all that they hold."""
    graph, groups = traced(built(name), image())
    small = shrunk(graph, groups, random_state(groups, 0)).graph_module
    text = json.dumps(graph_to_json(small))
    assert '"custom"' not in text
    loaded = graph_from_json(json.loads(text), graph_state(small))
    assert torch.equal(outputs(loaded, [image()]), outputs(small, [image()]))


@pytest.mark.spread(4)
@pytest.mark.parametrize("name", IMAGE_NETS)
def test_as_many_numbers_go_as_the_state_says(name):
    graph, groups = traced(built(name), image())
    state = random_state(groups, 0)
    tensors = {}
    for cut in cuts(groups, state):
        tensor = getattr(graph.graph_module.get_submodule(cut.path), cut.attribute)
        shape = tensors.setdefault(id(tensor), [tensor, list(tensor.shape)])[1]
        shape[cut.dim] = int(cut.keep.sum())
    removed = sum(
        tensor.numel() - int(np.prod(shape))
        for tensor, shape in tensors.values()
        if isinstance(tensor, nn.Parameter)
    )
    small = shrunk(graph, groups, state)
    assert numbers(graph.graph_module) - numbers(small.graph_module) == removed > 0


@pytest.mark.spread(3)
@pytest.mark.parametrize("name", IMAGE_NETS)
def test_groups_of_the_smaller_model_hold_what_was_kept(name):
    graph, groups = traced(built(name), image())
    state = random_state(groups, 0)
    left = channel_groups(shrunk(graph, groups, state))
    kept = {group.name: int(state[group.name].sum()) for group in groups.free}
    assert {g.name: g.units for g in left if g.name in kept} == kept
    assert all(
        g.why in ("", "all its channels can only go together") for g in left if g.name in kept
    )


@pytest.mark.spread(2)
@pytest.mark.parametrize("name", ["Residual", "Concat", "Shuffle", "Multihead", "Transposed"])
def test_two_steps_are_one(name):
    graph, groups = traced(built(name), image())
    first = {g.name: np.arange(g.units) != 1 for g in groups.free}
    once = {g.name: np.arange(g.units) > 1 for g in groups.free}
    both = shrunk(graph, groups, first)
    left = channel_groups(both)
    shrink(both, left, {g.name: np.arange(g.units) > 0 for g in left.free})
    direct = shrunk(graph, groups, once)
    assert list(both.module.state_dict()) == list(direct.module.state_dict())
    for one, other in zip(both.module.parameters(), direct.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_sites_describe_the_smaller_layers_under_their_old_names():
    for name in ("Residual", "Multihead", "Tied"):
        graph, groups = traced(built(name), image())
        small = shrunk(graph, groups, random_state(groups, 0))
        again = trace(small.module, small.call)
        assert small.sites == again.sites
        assert [s.name for s in small.sites] == [s.name for s in graph.sites]
        assert sum(s.size for s in small.sites) < sum(s.size for s in graph.sites)


def test_parts_of_a_weight_keep_their_names_and_rules():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
            self.head = nn.Linear(12, 5)

        def forward(self, x):
            return self.head(self.attention(x, x * 2, x * 3, need_weights=False)[0])

    graph, groups = traced(Crossed(), torch.randn(2, 7, 12, dtype=torch.float64))
    names = [f"attention.in_proj_weight[{a}:{a + 12}]" for a in (0, 12, 24)]
    graph.rules[names[1]] = rule = LayerRule(0.5)
    small = shrunk(graph, groups, {"attention": np.array([True, False, False])})
    assert [site.name for site in small.sites][:3] == names
    assert [(site.start, site.size) for site in small.sites][:3] == [(0, 48), (48, 48), (96, 48)]
    assert small.rules == {names[1]: rule}


def test_parts_of_a_quantized_weight_keep_their_scales():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
            self.head = nn.Linear(12, 5)

        def forward(self, x):
            return self.head(self.attention(x, x * 2, x * 3, need_weights=False)[0])

    graph, groups = traced(Crossed(), torch.randn(2, 7, 12, dtype=torch.float64))
    names = [f"attention.in_proj_weight[{a}:{a + 12}]" for a in (0, 12, 24)]
    rows = 2.0 ** -torch.arange(36, dtype=torch.float32).view(-1, 1)
    graph.encodings = {n: Encoding(4, r) for n, r in zip(names, rows.split(12), strict=True)}
    small = shrunk(graph, groups, {"attention": np.array([False, True, False])})
    for name, start in zip(names, (4, 16, 28), strict=True):
        assert torch.equal(small.encodings[name].scale, rows[start : start + 4])


def test_one_decision_for_each_group_that_lost_units():
    graph, groups = traced(built("Concat"), image())
    state = full_state(groups)
    state["a"][:3] = False
    [decision] = shrink(graph, groups, state)
    assert (decision.layer, decision.what) == ("a", "channels removed")
    assert (decision.before, decision.after) == ("7 units", "4 units")


def test_a_state_that_keeps_all_changes_nothing():
    graph, groups = traced(built("Multihead"), image())
    before = [*graph.module.parameters(), *graph.module.modules()]
    sites = graph.sites
    assert shrink(graph, groups, full_state(groups)) == []
    assert shrink(graph, groups, {}) == []
    after = [*graph.module.parameters(), *graph.module.modules()]
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert graph.sites is sites


def test_a_model_without_a_graph_has_nothing_to_lose():
    class Opaque(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x):
            return self.head(x) if float(x.sum()) > 0 else self.head(-x)

    graph, groups = traced(Opaque(), torch.rand(2, 3, dtype=torch.float64))
    assert shrink(graph, groups, {}) == []


def test_what_is_not_cut_is_not_copied():
    graph, groups = traced(built("Concat"), image())
    state = full_state(groups)
    state["b"][0] = False
    stem, head = graph.module.stem.weight, graph.module.head.weight
    shrink(graph, groups, state)
    assert graph.module.stem.weight is stem
    assert graph.module.head.weight is not head
    assert graph.module.head.weight is graph.graph_module.head.weight


@pytest.mark.slow
def test_both_forms_of_the_model_hold_the_same_tensors():
    for name in IMAGE_NETS:
        graph, groups = traced(built(name), image())
        shrink(graph, groups, random_state(groups, 0))
        theirs = dict(graph.module.named_parameters(remove_duplicate=False))
        mine = dict(graph.graph_module.named_parameters(remove_duplicate=False))
        assert mine
        assert all(mine[path] is theirs[path] for path in mine)


def test_ties_are_kept():
    model = Words()
    words = torch.randint(0, 11, (2, 7), generator=torch.Generator().manual_seed(0))
    graph, groups = traced(randomize(model), words)
    shrink(graph, groups, random_state(groups, 0))
    assert model.head.weight is model.table.weight
    assert model.table.embedding_dim == model.head.in_features == model.table.weight.shape[1] < 8
    graph, groups = traced(built("Tied"), image())
    shrink(graph, groups, random_state(groups, 0))
    assert graph.module.b.weight is graph.module.c.weight


def test_a_layer_at_two_places_stays_one():
    model = Multihead()
    model.again, model.list = model.attention, nn.ModuleList([model.up])
    graph, groups = traced(randomize(model), image())
    shrink(graph, groups, random_state(groups, 0))
    assert model.again is model.attention
    assert model.list[0] is model.up
    assert graph.graph_module.attention is model.attention


def test_gradients_and_flags_of_parameters_are_kept():
    graph, groups = traced(built("Residual"), image())
    model = graph.module
    model.a.weight.requires_grad_(False)
    model(image()).square().sum().backward()
    gradient = model.b.weight.grad.clone()
    state = full_state(groups)
    state["a"][[1, 4]] = False
    shrink(graph, groups, state)
    assert not model.a.weight.requires_grad
    assert model.b.weight.requires_grad
    assert torch.equal(model.b.weight.grad, gradient[:, [0, 2, 3, 5]])
    assert model.a.weight.grad is None
    assert not model.bn.running_mean.requires_grad


@pytest.mark.parametrize("name", ["Residual", "Depthwise", "Flat", "Grouped", "Multihead"])
def test_a_shrunk_model_trains(name):
    graph, groups = traced(built(name), image())
    shrink(graph, groups, random_state(groups, 0))
    model = graph.graph_module.train()
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    means = [norm.running_mean.clone() for norm in norms]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = [p.detach().clone() for p in model.parameters()]
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(image(4)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]
    assert sum(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)) > 2
    for norm, mean in zip(norms, means, strict=True):
        assert norm.running_mean.shape == mean.shape
        assert not torch.equal(norm.running_mean, mean)


def test_modes_and_classes_stay():
    model = built("Multihead")
    graph, groups = traced(model, image())
    model.train()
    model.up.eval()
    shrink(graph, groups, random_state(groups, 0))
    assert type(graph.module) is Multihead
    flags = {path: part.training for path, part in model.named_modules()}
    assert flags.pop("up") is False
    assert all(flags.values())


def test_a_copy_of_a_traced_model_shrinks_alone():
    graph, groups = traced(built("Tied"), image())
    before = {name: value.clone() for name, value in graph.module.state_dict().items()}
    small = copy.deepcopy(graph)
    shrink(small, groups, random_state(groups, 0))
    assert all(torch.equal(before[n], v) for n, v in graph.module.state_dict().items())
    assert small.module.stem is small.graph_module.stem


class ReadsWidth(Net):
    """Computes with a number that its layer tells; the graph holds the number that was traced."""

    def body(self, x):
        return x * self.stem.out_channels**-0.5


@pytest.mark.parametrize(
    ("build", "why"), [(Constant, "written for the old width"), (ReadsWidth, "something else")]
)
def test_where_the_forward_does_not_follow_the_graph_is_the_model(build, why):
    torch.manual_seed(0)
    graph, groups = traced(randomize(build()), image())
    state = {"stem": np.arange(8) < 5}
    expected = outputs(insert_gates(graph, groups, state), [image()])
    removed, followed = shrink(graph, groups, state)
    assert removed.layer == "stem"
    assert followed.what == "the traced graph is the model now"
    assert why in followed.why
    assert graph.rewritten
    assert graph.runnable is graph.graph_module
    assert relative_error(outputs(graph.runnable, [image()]), expected) < 1e-12
    assert graph.sites[0].uses[0].shape.out_channels == 5


def test_layers_that_only_training_has_leave_the_model_to_its_graph():
    class Auxiliary(Net):
        def __init__(self):
            super().__init__(aux=nn.Conv2d(8, 5, 1))

        def forward(self, x):
            y = torch.relu(self.bn(self.stem(x)))
            return (self.head(y), self.aux(y)) if self.training else self.head(y)

    graph, groups = traced(randomize(Auxiliary()), image())
    *_, followed = shrink(graph, groups, {"stem": np.arange(8) < 5})
    assert "training mode" in followed.why
    assert graph.runnable.train()(image()).shape == (2, 5, 8, 8)


def test_a_model_with_input_masks_shrinks():
    graph, groups = traced(built("Residual"), image())
    attach_input_masks(graph)
    groups = channel_groups(graph)
    assert [group.name for group in groups.free] == ["stem", "a"]
    state = random_state(groups, 0)
    expected = outputs(insert_gates(graph, groups, state), [image()])
    shrink(graph, groups, state)
    assert relative_error(outputs(graph.runnable, [image()]), expected) < 1e-12
    assert len(graph.graph_module.get_buffer("input_masks.a")) == state["stem"].sum()


def test_a_model_that_needs_its_batch_shrinks():
    class Pairs(Net):
        def body(self, x):
            left, right = x.split(x.size(0) // 2, dim=0)
            return left + right

    graph, groups = traced(randomize(Pairs()), image(4))
    shrink(graph, groups, {"stem": np.arange(8) < 3})
    assert graph.module(image(4)).shape == (2, 5)
    assert graph.by_name["stem"].uses[0].shape.out_channels == 3


@pytest.mark.slow
def test_the_file_loses_the_bytes_of_what_was_removed(tmp_path):
    torch.manual_seed(0)
    model, x = Residual().float().eval(), image().float()
    graph = trace(model, as_call(model, x))
    eyeriss = load_hardware("eyeriss")
    before = write_dense(graph, eyeriss, tmp_path / "dense.onnx")
    dense = numbers(model.stem) + numbers(model.a) + numbers(model.b) + numbers(model.head)
    groups = channel_groups(graph)
    shrink(graph, groups, random_state(groups, 0))
    small = numbers(model.stem) + numbers(model.a) + numbers(model.b) + numbers(model.head)
    after = write_dense(graph, eyeriss, tmp_path / "small.onnx")
    assert before.bytes - after.bytes >= 4 * (dense - small) > 0
    assert after.parity.max_abs_error < 1e-5
    assert set(after.recount.stored) == {"stem", "a", "b", "head"}


def test_functional_layers_shrink_without_modules():
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 3, 1, 1))
            self.register_buffer("shift", torch.rand(6, 1, 1))

        def forward(self, x):
            return F.conv2d(x, self.weight) + self.shift

    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.head = Inside(), nn.Conv2d(6, 5, 1)

        def forward(self, x):
            return self.head(torch.relu(self.inside(x)))

    graph, groups = traced(Holds(), image())
    shrink(graph, groups, {"inside": np.arange(6) % 2 == 0})
    for model in (graph.module, graph.graph_module):
        assert model.inside.weight.shape == (3, 3, 1, 1)
        assert model.inside.shift.shape == (3, 1, 1)
        assert "shift" in model.inside._buffers
    assert isinstance(graph.module.inside, Inside)


def test_tied_layers_have_the_same_cut_once():
    graph, groups = traced(built("Tied"), image())
    state = random_state(groups, 1)
    shrink(graph, groups, state)
    left = int(state["stem"].sum())
    assert type(graph.module) is Tied
    assert graph.module.b.weight.shape == (left, left, 1, 1)
    assert graph.module.c.out_channels == graph.module.c.in_channels == left
