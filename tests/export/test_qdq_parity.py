"""Agreement of quantized files: flips are allowed, anything else is seen."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from quantized_nets import quantize, seeded
from torch import nn

from energy_model.errors import ParityError
from energy_model.hardware import load_hardware
from export import qdq_parity
from export.census import float_layers, integer_layers, take_census
from export.onnx_file import at_batch
from export.qdq import write_qdq
from export.qdq_parity import check_agreement


def net():
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(128, 6))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A graph, its file, the calls of its quantizers and the tensors of codes there."""
    graph = quantize(*seeded(net, (4, 3, 8, 8)))
    path = tmp_path_factory.mktemp("parity") / "model.onnx"
    write_qdq(graph, load_hardware("eyeriss"), path)
    names = [n for n, _ in graph.runnable.named_children() if n.startswith("quantizer")]
    rounded = [n for n in onnx.load(path).graph.node if n.op_type == "QuantizeLinear"]
    by_scale = {node.input[1].removesuffix(".scale"): node.output[0] for node in rounded}
    assert set(by_scale) == set(names)
    return graph, path, {(name, 0): by_scale[name] for name in names}


def check(case, path=None):
    graph, original, codes = case
    call = at_batch(graph.call, 3)
    return check_agreement(path or original, graph.runnable, call, codes, original)


def changed(case, tmp_path, name, change):
    model = onnx.load(case[1])
    [item] = [t for t in model.graph.initializer if t.name == name]
    array = numpy_helper.to_array(item).copy()
    item.CopyFrom(numpy_helper.from_array(change(array), name))
    path = tmp_path / "changed.onnx"
    onnx.save_model(model, str(path))
    return path


@pytest.mark.slow
def test_the_file_agrees_in_every_mode(case):
    agreement = check(case)
    assert set(agreement.modes) == {"reference", "default", "x64quantprecision"}
    assert agreement.parity.batch == 3
    assert agreement.parity.top1_agreement is not None
    assert 0 <= agreement.flips < 0.01
    assert agreement.relative["reference"] < 0.02
    assert not agreement.failures


def add_to(place, amount):
    def change(array):
        array.flat[place] += amount
        return array

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("0.weight_codes", lambda a: np.clip(a.astype(int) + 6, -127, 127).astype(a.dtype)),
        ("3.weight_scale", lambda a: a * np.float32(1.02)),
        ("0.bias_codes", add_to(1, 600)),
        ("quantizer__3.zero_point", add_to(0, 1)),
    ],
)
def test_what_is_no_flip_is_refused(case, tmp_path, name, change):
    with pytest.raises(ParityError, match=r"codes of the quantizer \w+ lie up to .* steps"):
        check(case, changed(case, tmp_path, name, change))


@pytest.mark.slow
def test_an_output_behind_the_last_rounding_is_compared_as_float(tmp_path):
    graph = quantize(*seeded(net, (4, 3, 8, 8)), last=False)
    path = tmp_path / "model.onnx"
    write_qdq(graph, load_hardware("eyeriss"), path)
    file = changed((graph, path), tmp_path, "5.bias_codes", lambda a: a + 3000)
    with pytest.raises(ParityError, match="differs from torch by"):
        check((graph, path, {}), file)


def test_a_mode_that_is_far_off_is_refused_with_its_remedy(case, monkeypatch):
    errors = iter([0.06, 0.13, 0.0])
    monkeypatch.setattr(qdq_parity, "GROSS", 0.1)
    monkeypatch.setattr(qdq_parity, "_relative", lambda *_: next(errors))
    with pytest.raises(ParityError, match=r"13\.0% off.*weights=7.*session\.x64quantprecision=1"):
        check(case)
    errors = iter([0.07, 0.13, 0.0])
    assert check(case).relative["default"] == 0.13


def test_a_mode_that_cannot_run_is_recorded(case, monkeypatch):
    modes = {"default": {}, "broken": {"": "a key needs a name"}}
    monkeypatch.setattr(qdq_parity, "MODES", modes)
    agreement = check(case)
    assert set(agreement.modes) == {"reference", "default"}
    assert "broken" in agreement.failures


def test_one_flip_does_not_matter_where_torch_follows(case, tmp_path):
    flipped = changed(case, tmp_path, "0.bias_codes", add_to(0, 1))
    assert check(case, flipped).flips < 0.02


def test_the_census_counts_what_is_run(case):
    census = take_census(case[1])
    assert integer_layers(census.operators) == 3
    assert float_layers(census.operators) == 0
    assert census.decoded == frozenset()
    assert sum(census.operators.values()) >= 5


@pytest.mark.slow
def test_the_census_names_codes_that_are_decoded_every_time(tmp_path):
    graph = quantize(*seeded(net, (4, 3, 8, 8)), activations=0)
    written = write_qdq(graph, load_hardware("eyeriss"), tmp_path / "model.onnx")
    census = take_census(written.path)
    assert census.operators == written.census
    assert census.decoded == {"0.weight_codes", "3.weight_codes"}
    assert float_layers(census.operators) == 2
    assert integer_layers(census.operators) == 1
