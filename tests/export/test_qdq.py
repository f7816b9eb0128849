"""The whole way to a quantized file: what ONNX Runtime runs, and what is in it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from quantized_nets import quantize, seeded
from torch import nn
from torch.nn import functional as F

from bench.zoo.cifar_resnet import BasicBlock, resnet20
from energy_model.errors import ArgumentError, ExportError
from energy_model.hardware import load_hardware
from export.census import float_layers, integer_layers
from export.qdq import write_qdq
from passes.rewrite.freeze import freeze

EYERISS = load_hardware("eyeriss")


class Residual(nn.Module):
    """A stem, a block with the shortcut that slices and pads, a global mean, a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.block = BasicBlock(8, 16, 2)
        self.linear = nn.Linear(16, 5)

    def forward(self, x):
        out = self.block(F.relu(self.norm(self.conv(x))))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))


class Fire(nn.Module):
    """Max-pooling, a concatenation, a mean without a linear layer."""

    def __init__(self):
        super().__init__()
        self.squeeze = nn.Conv2d(3, 8, 1)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(16, 10, 1)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.squeeze(x)), 3, 2, padding=1)
        x = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        return self.head(x).mean((2, 3))


class Upsampled(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.up, self.last = nn.ConvTranspose2d(8, 4, 2, 2), nn.BatchNorm2d(4)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.out(F.relu(self.last(self.up(F.relu(self.norm(self.down(x)))))))


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(16, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = self.embed(x)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def dense_net():
    return nn.Sequential(nn.Linear(256, 96), nn.ReLU(), nn.Linear(96, 10))


NETS = {
    "residual": (Residual, (4, 3, 8, 8)),
    "fire": (Fire, (4, 3, 8, 8)),
    "upsampled": (Upsampled, (4, 3, 8, 8)),
    "attentive": (Attentive, (4, 6, 16)),
    "dense": (dense_net, (4, 256)),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Graph and file of a case; every case is exported once."""
    folder, done = tmp_path_factory.mktemp("qdq"), {}

    def get(name, floating=(), opset=21, **options):
        key = (name, tuple(floating), opset, *sorted(options.items()))
        if key not in done:
            graph = quantize(*seeded(*NETS[name]), **options)
            path = folder / f"{len(done)}.onnx"
            chosen = frozenset(floating)
            done[key] = graph, write_qdq(graph, EYERISS, path, floating=chosen, opset=opset)
        return done[key]

    return get


def stored(written):
    model = onnx.load(written.path)
    return {item.name: item for item in model.graph.initializer}


def kinds(written):
    return [node.op_type for node in onnx.load(written.path).graph.node]


@pytest.mark.slow
def test_a_residual_network_runs_in_integers(exported):
    _, written = exported("residual")
    census = dict(written.census)
    assert float_layers(census) == 0
    assert integer_layers(census) == 4
    expected = {"QLinearConv": 3, "QGemm": 1, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1}
    assert {name: census[name] for name in expected} == expected
    # The shortcut moves codes: one slice, one pad, and nothing is decoded for it.
    assert (census["Slice"], census["Pad"]) == (1, 1)
    assert (census["QuantizeLinear"], census["DequantizeLinear"]) == (1, 1)
    assert written.form == "qdq"
    assert set(written.modes) == {"reference", "default", "x64quantprecision"}
    assert written.parity.max_abs_error == written.modes["default"]
    assert not onnx.load(written.path).graph.value_info


@pytest.mark.slow
def test_weights_and_biases_are_stored_as_integers(exported):
    graph, written = exported("residual")
    items, frozen = stored(written), freeze(graph)
    for site in graph.compressible:
        codes = numpy_helper.to_array(items[f"{site.name}.weight_codes"])
        scale = numpy_helper.to_array(items[f"{site.name}.weight_scale"])
        expected = frozen.encodings[site.name].codes(frozen.weights[site.name]).numpy()
        np.testing.assert_array_equal(codes, expected)
        np.testing.assert_array_equal(scale, frozen.encodings[site.name].scale[:, 0].numpy())
        bias = numpy_helper.to_array(items[f"{site.name}.bias_codes"])
        steps = numpy_helper.to_array(items[f"{site.name}.bias_scale"])
        layer = frozen.module.get_submodule(site.name)
        assert bias.dtype == np.int32
        assert np.all(np.abs(bias * steps.astype(np.float64) - layer.bias.numpy()) <= steps * 0.51)
    floats = [item for item in items.values() if item.data_type == TensorProto.FLOAT]
    assert all(item.name.endswith("scale") for item in floats)


def test_the_reference_evaluator_agrees_up_to_flips(exported):
    graph, written = exported("residual")
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    actual = ReferenceEvaluator(str(written.path)).run(None, {"x": x.numpy()})[0]
    with torch.no_grad():
        expected = graph.runnable(x)
    step = float(graph.runnable.quantizer_linear.scale)
    assert np.abs(actual - expected.numpy()).max() <= 3 * step


@pytest.mark.slow
def test_concatenations_and_pools_run_in_integers(exported):
    _, written = exported("fire")
    census = dict(written.census)
    assert float_layers(census) == 0
    expected = {"QLinearConv": 4, "QLinearConcat": 1, "QLinearGlobalAveragePool": 1}
    assert {name: census[name] for name in expected} == expected
    assert census["QuantizeLinear"] == census["DequantizeLinear"] == 1
    assert "NhwcMaxPool" in census or "MaxPool" in census


@pytest.mark.slow
@pytest.mark.parametrize("last", [True, False])
def test_linear_layers_run_in_integers_with_and_without_a_rounded_output(exported, last):
    _, written = exported("dense", last=last)
    assert written.census["QGemm"] == 2
    assert written.census.get("DequantizeLinear", 0) == int(last)


@pytest.mark.slow
@pytest.mark.parametrize("activations", [2, 4])
def test_a_bias_is_not_rounded_to_the_wide_steps_of_narrow_inputs(tmp_path, activations):
    def net():
        return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()

    inputs = seeded(net, (64, 16))
    graph = quantize(*inputs, weights=4, activations=activations, last=False)
    written = write_qdq(graph, EYERISS, tmp_path / "narrow.onnx")  # within the tolerance of floats
    assert integer_layers(written.census) == 2
    assert float_layers(written.census) == 0
    assert written.census["MatMulIntegerToFloat"] == written.census["Sub"] == 1


@pytest.mark.slow
def test_neither_is_that_of_a_layer_whose_output_is_returned_and_rounded(tmp_path):
    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x):
            features = F.relu(self.first(x))
            return features, self.second(features)

    graph = quantize(*seeded(Features, (64, 16)), weights=4, activations=4, last=False)
    written = write_qdq(graph, EYERISS, tmp_path / "features.onnx")
    assert integer_layers(written.census) == 2
    assert float_layers(written.census) == 0


@pytest.mark.slow
def test_what_the_runtime_cannot_run_in_integers_is_float(exported):
    _, written = exported("upsampled")
    assert written.census["ConvTranspose"] == 1
    assert written.census["QLinearConv"] == 2
    assert "up.weight" in stored(written)
    assert any(note.startswith("float weights in up: ") for note in written.notes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "activations"),
    [(4, 7), *(pytest.param(*bits, marks=pytest.mark.slow) for bits in [(2, 8), (8, 4), (7, 8)])],
)
def test_fewer_bits_run_in_integers_too(exported, weights, activations):
    _, written = exported("residual", weights=weights, activations=activations)
    assert integer_layers(written.census) == 4
    assert float_layers(written.census) == 0
    packed = weights <= 4
    assert packed == (stored(written)["conv.weight_codes"].data_type == TensorProto.INT4)
    assert packed == any("stored in 4 bits" in note for note in written.notes)
    assert ("Clip" in kinds(written)) == (activations < 8)
    assert not any("saturate" in n for n in written.notes)  # products of 8 by 7 bits fit


def test_saturation_is_told_with_its_remedies(exported):
    [note] = [n for n in exported("residual")[1].notes if "saturate" in n]
    assert "session.x64quantprecision=1" in note
    assert "7 bits" in note
    assert "reference" in note


@pytest.mark.slow
def test_signed_activations_are_written_as_they_are(exported):
    _, written = exported("residual", signed=True)
    items = stored(written)
    assert items["quantizer_linear.zero_point"].data_type == TensorProto.INT8
    assert items["conv.weight_codes"].data_type == TensorProto.INT8
    assert any("slowly on x86" in note for note in written.notes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "block"),
    [
        (4, 32),
        *(
            pytest.param(bits, block, marks=pytest.mark.slow)
            for bits in (4, 8)
            for block in (None, 16, 32, 64, 128)
        ),
    ],
)
def test_weight_only_linear_layers_multiply_codes(exported, weights, block):
    _, written = exported("dense", weights=weights, activations=0, block=block)
    assert written.census["MatMulNBits"] == 2
    assert float_layers(written.census) == 0
    assert "Gemm" not in kinds(written)
    assert written.modes["reference"] < 1e-5
    assert any("qdq_matmulnbits_accuracy_level=1" in note for note in written.notes)


@pytest.mark.slow
def test_products_inside_attention_multiply_codes(exported):
    _, written = exported("attentive", weights=4, activations=0, block=16)
    assert written.census["MatMulNBits"] == 4
    assert not [n for n, t in stored(written).items() if t.data_type == 1 and len(t.dims) == 3]


@pytest.mark.slow
def test_weight_only_convolutions_are_a_matter_of_size(exported):
    graph, written = exported("residual", weights=4, activations=0)
    assert float_layers(written.census) > 0
    assert any(n.startswith("storage only") and "disable_quant_qdq" in n for n in written.notes)
    assert written.modes["reference"] < 1e-4 * written.parity.scale
    assert written.bytes < sum(site.size for site in graph.sites) * 4


@pytest.mark.slow
def test_sites_that_are_to_stay_float_do_and_their_quantizers_go(exported):
    _, whole = exported("residual")
    _, written = exported("residual", floating=["block.conv1", "block.conv2"])
    items = stored(written)
    assert {"block.conv1.weight", "block.conv2.weight"} < set(items)
    assert "conv.weight_codes" in items
    assert float_layers(written.census) == 2
    assert integer_layers(written.census) == 2
    assert kinds(written).count("QuantizeLinear") == kinds(whole).count("QuantizeLinear") - 1
    assert "1 quantizers serve no layer in integers and are left out" in written.notes


@pytest.mark.slow
def test_all_sites_float_is_a_float_file(exported):
    graph, _ = exported("residual")
    _, written = exported("residual", floating=sorted(site.name for site in graph.sites))
    assert "QuantizeLinear" not in kinds(written)
    assert written.modes["default"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 25])
def test_other_opsets(exported, opset):
    _, written = exported("dense", opset=opset, weights=2 if opset == 25 else 8)
    model = onnx.load(written.path)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", opset)]
    assert written.census["QGemm"] == 2
    if opset == 25:
        assert stored(written)["0.weight_codes"].data_type == TensorProto.INT2


@pytest.mark.parametrize(
    "options",
    [{"weights": 4}, pytest.param({"block": 16, "activations": 0}, marks=pytest.mark.slow)],
)
def test_an_opset_that_is_too_old_is_refused(tmp_path, options):
    graph = quantize(*seeded(*NETS["dense"]), **options)
    with pytest.raises(ExportError, match="which opset 20 cannot express"):
        write_qdq(graph, EYERISS, tmp_path / "model.onnx", opset=20)
    assert not list(tmp_path.iterdir())


def test_other_arguments_are_refused(exported, tmp_path):
    graph, path = exported("residual")[0], tmp_path / "model.onnx"
    with pytest.raises(ArgumentError, match="no site is called 'nothing'"):
        write_qdq(graph, EYERISS, path, floating=frozenset({"nothing"}))
    with pytest.raises(ArgumentError, match="opset 17 is not available"):
        write_qdq(graph, EYERISS, path, opset=17)
    plain = quantize(*seeded(*NETS["dense"]), activations=0, only=())
    with pytest.raises(ExportError, match="no weight of the model is quantized"):
        write_qdq(plain, EYERISS, path)


@pytest.mark.slow
def test_the_graph_is_not_changed(exported, tmp_path):
    graph, written = exported("dense")
    state = {name: value.clone() for name, value in graph.runnable.state_dict().items()}
    again = write_qdq(graph, EYERISS, tmp_path / "again.onnx")
    assert again.path.read_bytes() == written.path.read_bytes()
    assert all(torch.equal(graph.runnable.state_dict()[n], value) for n, value in state.items())


@pytest.mark.slow
def test_resnet20_runs_in_integers(tmp_path):
    graph = quantize(*seeded(resnet20, (4, 3, 32, 32)))
    written = write_qdq(graph, EYERISS, tmp_path / "model.onnx")
    census = dict(written.census)
    assert float_layers(census) == 0
    expected = {"QLinearConv": 19, "QGemm": 1, "QLinearAdd": 9, "QLinearGlobalAveragePool": 1}
    assert {name: census[name] for name in expected} == expected
    assert (census["Slice"], census["Pad"]) == (2, 2)
    assert (census["QuantizeLinear"], census["DequantizeLinear"]) == (1, 1)
    assert written.parity.top1_agreement == 1.0
