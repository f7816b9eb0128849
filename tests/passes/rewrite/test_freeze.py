from __future__ import annotations

import pytest
import torch
from torch import nn

from energy_model.errors import PostconditionError
from passes.inputs import as_call
from passes.quantize.activations import ActivationQuantizer
from passes.quantize.encoding import Encoding, largest_code, snap
from passes.rewrite.freeze import freeze, in_rows
from passes.tracing.trace import trace


class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(x) if x.abs().sum() > 0 else x


def graph_of(model, inputs):
    return trace(model, as_call(model, inputs))


def convnet():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(64, 5)
    )
    with torch.no_grad():
        model(torch.randn(8, 2, 6, 6))  # running statistics that are not those of a new norm
    return model


def test_computes_what_the_model_computes_in_evaluation():
    model = convnet()
    frozen = freeze(graph_of(model, torch.randn(3, 2, 6, 6)))
    assert frozen.folded == ("1",)
    assert not any(module.training for module in frozen.module.modules())
    x = torch.randn(4, 2, 6, 6)
    assert torch.allclose(frozen.module(x), model.eval()(x), atol=1e-6)


def test_the_model_is_not_touched():
    model = convnet()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    graph = graph_of(model, torch.randn(3, 2, 6, 6))
    frozen = freeze(graph)
    with torch.no_grad():
        for parameter in frozen.module.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert [str(node.target) for node in graph.graph_module.graph.nodes].count("1") == 1


def test_weights_are_those_of_the_frozen_module_by_site():
    graph = graph_of(convnet(), torch.randn(3, 2, 6, 6))
    frozen = freeze(graph)
    assert list(frozen.weights) == ["0", "4"]
    assert frozen.weights["0"].shape == (4, 2, 3, 3)
    assert torch.equal(frozen.weights["4"], graph.module[4].weight)
    conv = frozen.module.get_submodule("0").weight
    assert frozen.weights["0"].data_ptr() == conv.data_ptr()
    assert not torch.equal(conv, graph.module[0].weight)


def test_a_model_that_is_one_opaque_leaf_is_copied():
    graph = graph_of(Opaque(), torch.randn(3, 8))
    frozen = freeze(graph)
    assert frozen.folded == ()
    assert isinstance(frozen.module, Opaque)
    assert frozen.module is not graph.module
    x = torch.randn(3, 8)
    assert torch.equal(frozen.module(x), graph.module(x))


def quantized(bits=4):
    graph = graph_of(convnet(), torch.randn(3, 2, 6, 6))
    with torch.no_grad():
        graph.module[1].weight[:3] = torch.tensor([-0.7, 0.0, 1.3])
    for site in graph.compressible:
        weight = graph.weight(site)
        scale = weight.flatten(1).abs().amax(1, keepdim=True) / largest_code(bits)
        graph.encodings[site.name] = Encoding(bits, snap(scale))
        with torch.no_grad():
            weight.copy_(graph.encodings[site.name].nearest(weight))
    return graph


def test_folded_weights_are_exactly_what_their_encodings_write():
    graph = quantized()
    before = {name: encoding.scale.clone() for name, encoding in graph.encodings.items()}
    frozen = freeze(graph)
    assert frozen.folded == ("1",)
    for name, encoding in frozen.encodings.items():
        weight = frozen.weights[name]
        assert torch.equal(encoding.weight(encoding.codes(weight)), weight)
    original, folded = graph.encodings["0"], frozen.encodings["0"]
    signs = torch.tensor([-1, 0, 1, 1]).view(4, 1, 1, 1)
    codes = original.codes(graph.weight(graph.by_name["0"]))
    assert torch.equal(folded.codes(frozen.weights["0"]), codes * signs)
    assert int((frozen.weights["0"][1] != 0).sum()) == 0
    assert not torch.equal(folded.scale, original.scale)
    assert torch.equal(folded.scale, snap(folded.scale))
    assert all(torch.equal(graph.encodings[name].scale, scale) for name, scale in before.items())
    x = torch.randn(4, 2, 6, 6)
    torch.testing.assert_close(frozen.module(x), graph.module.eval()(x), rtol=1e-4, atol=1e-5)


def test_a_weight_off_its_grid_is_refused():
    graph = quantized()
    with torch.no_grad():
        graph.weight(graph.by_name["4"])[0, 0] += 1e-4
    with pytest.raises(PostconditionError, match="4: the weight is not on its grid"):
        freeze(graph)


def test_a_rewritten_graph_is_traced_with_its_quantizers():
    graph = quantized()
    module = graph.graph_module
    quantizer = ActivationQuantizer()
    quantizer.set_range(-1.0, 1.0)
    module.add_submodule("rounding", quantizer)
    norm = next(node for node in module.graph.nodes if node.target == "1")
    with module.graph.inserting_after(norm):
        new = module.graph.call_module("rounding", (norm,))
    norm.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    module.recompile()
    graph.rewritten = True
    frozen = freeze(graph)
    assert frozen.folded == ("1",)
    targets = [str(node.target) for node in frozen.module.graph.nodes]
    assert targets.index("rounding") == targets.index("0") + 1
    assert frozen.encodings["0"].holds(frozen.weights["0"])


def test_parts_of_a_parameter_are_seen_as_matrices():
    encoding = Encoding(4, torch.ones(3, 1))
    assert in_rows(torch.zeros(12), encoding).shape == (3, 4)
    assert in_rows(torch.zeros(3, 2, 2), encoding).shape == (3, 2, 2)
