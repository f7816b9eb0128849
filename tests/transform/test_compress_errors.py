"""Bad input: a typed error each that says what, where and what to do."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from transform_nets import SmallConv, made

import transform
from transform.fingerprint import state_digest


def compress(model=None, budget="energy<=50%", **options):
    made_model, example = made(SmallConv)
    options.setdefault("example_inputs", example)
    return transform.compress(made_model if model is None else model, budget, **options)


def refused(error, match, **options):
    """Assert the error, and that its message has a remedy; returns it."""
    with pytest.raises(error, match=match) as caught:
        compress(**options)
    assert isinstance(caught.value, transform.CompressionError)
    assert str(caught.value).rstrip()
    return caught.value


@pytest.mark.parametrize("value", [["conv"], "conv", 0, torch.ones(2)])
def test_rules_for_layers_are_a_mapping(value):
    refused(transform.ArgumentError, "^layers: .*no mapping", layers=value)


class ByValue(nn.Module):
    """Its branch has no ONNX form."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x):
        return self.layer(x) if bool(x.sum() > 0) else self.layer(x).relu()


def test_a_result_that_has_no_onnx_form_is_saved_all_the_same(tmp_path):
    found = refused(
        transform.ExportError,
        "cannot express this model",
        model=ByValue(),
        budget="nonzeros<=50%",
        example_inputs=torch.ones(2, 8),
        out=tmp_path / "small",
    )
    assert found.__notes__ == [
        f"The result is saved in {tmp_path / 'small'}, without ONNX; transform.load() reads it."
    ]
    loaded = transform.load(tmp_path / "small", ByValue())
    assert int(loaded.model.layer.weight.count_nonzero()) == 16
    assert not (tmp_path / "small" / "model.onnx").exists()


def test_training_needs_data_and_a_configuration():
    refused(transform.ArgumentError, r"^train: .*no data\. Pass data=", train=3)
    refused(transform.ArgumentError, r"^train: str is no training configuration", train="long")


def test_the_defaults_of_the_public_signature_are_accepted_when_written_out():
    result = compress(
        hardware="eyeriss",
        target="onnxruntime-cpu",
        teacher="original",
        train=None,
        loss=None,
        metric=None,
        out=None,
        resume=True,
        device=None,
        seed=0,
        progress="auto",
        layers=None,
    )
    assert result.certificate.holds


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"target": "tpu"}, r"^target: unknown target 'tpu'.*onnxruntime-cpu"),
        ({"seed": -1}, r"^seed: -1 is not a seed"),
        ({"seed": 1.5}, r"^seed: "),
        ({"seed": True}, r"^seed: "),
        ({"seed": 2**70}, r"^seed: "),
        ({"out": 5}, r"^out: 5 is no path"),
        ({"device": object()}, r"^device: .*not available"),
        ({"device": "meta"}, r"^device: .*meta device"),
        ({"progress": "loud"}, r"^progress: unknown mode 'loud'.*'log'"),
        ({"device": "cuda:77"}, r"^device: .*not available"),
        ({"device": "abacus"}, r"^device: .*not available"),
        ({"method": "energi"}, r"^method: unknown method 'energi'. Did you mean 'energy'"),
        ({"method": transform.Magnitude}, r"^method: .*configuration object"),
        ({"method": 3}, r"^method: 3 is not a method"),
        ({"method": None}, r"^method: None is not a method"),
    ],
)
def test_bad_options_are_refused_by_name(options, match):
    refused(transform.ArgumentError, match, **options)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (SmallConv, r"^model: type is not a torch\.nn\.Module.*Call it first"),
        (lambda x: x, r"^model: function is not.*Call it first"),
        ({"weight": torch.ones(2)}, r"^model: dict is not a torch\.nn\.Module"),
    ],
)
def test_what_is_no_model_is_refused(model, match):
    refused(transform.ArgumentError, match, model=model)


def test_an_example_is_needed():
    model, x = made(SmallConv)
    with pytest.raises(transform.ArgumentError, match=r"^example_inputs: .*needed.*or data="):
        transform.compress(model, "energy<=50%")
    with pytest.raises(transform.ArgumentError, match=r"^data: no batches"):
        transform.compress(model, "energy<=50%", [])
    with pytest.raises(transform.ArgumentError, match=r"^data: int is not iterable"):
        transform.compress(model, "energy<=50%", 5)
    with pytest.raises(transform.ArgumentError, match=r"^data: a batch is a dict.*'inputs'"):
        transform.compress(model, "energy<=50%", [{"x": x}])
    with pytest.raises(transform.ArgumentError, match=r"^data: a batch is empty"):
        transform.compress(model, "energy<=50%", [()])
    with pytest.raises(transform.ArgumentError, match="no tensor in str"):
        transform.compress(model, "energy<=50%", ["batch"])


@pytest.mark.parametrize(
    "example",
    [torch.zeros(2, 3, 8, 8), torch.zeros(2, 2, 5, 5), torch.zeros(2, 2, 8, 8, dtype=torch.int64)],
)
def test_an_example_that_does_not_fit_is_shown_with_its_shape(example):
    error = refused(
        transform.TraceError, "the model fails on the example inputs", example_inputs=example
    )
    assert str(tuple(example.shape)) in str(error)
    assert "example_inputs" in error.remedy
    assert re.match(r".*transform_nets\.py:\d+$", error.where)


def test_too_many_inputs_are_a_trace_error():
    x = torch.zeros(2, 2, 8, 8)
    refused(transform.TraceError, "positional arguments", example_inputs=(x, x, x))


@pytest.mark.spread(3)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("budget", ["energy<=50%", "nonzeros<=100%"])
def test_weights_that_are_not_finite_are_refused_by_layer(value, budget):
    model, _ = made(SmallConv)
    with torch.no_grad():
        model.head.weight[1, 2] = value
    error = refused(
        transform.PreconditionError, r"^head: 1 of 1920 weights", model=model, budget=budget
    )
    assert "Repair" in error.remedy


@pytest.mark.parametrize(
    "model",
    [nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2)), nn.Identity(), nn.Flatten()],
)
def test_a_model_without_weighted_layers_is_refused(model):
    refused(transform.PreconditionError, "no weighted layer takes part", model=model)


@pytest.mark.parametrize("budget", ["energy<=50%", "energy<=100%", "nonzeros<=50%"])
def test_a_model_whose_weights_are_all_computed_is_refused(budget):
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)))
    refused(
        transform.PreconditionError,
        "every weight is computed in forward.*Merge the reparametrization",
        model=model,
        budget=budget,
        example_inputs=torch.zeros(1, 4),
    )


def test_a_model_without_values_is_refused():
    model, _ = made(SmallConv)
    refused(transform.ArgumentError, r"^device: .*meta device", model=model.to("meta"))


def test_a_model_that_cannot_be_copied_is_refused():
    model, _ = made(SmallConv)
    model.cached = model.conv.weight * 2
    refused(transform.PreconditionError, r"^SmallConv: the model cannot be copied", model=model)


@pytest.mark.parametrize(
    ("hardware", "match"),
    [
        ("eyeris", "unknown hardware profile 'eyeris'.*eyeriss"),
        (5, "unknown hardware profile 5"),
        ("missing.yaml", "cannot read the hardware profile"),
        ({"dram_energy": -1}, "dram_energy is -1, but must be an integer"),
        ({"dram_enrgy": 1}, "unknown field dram_enrgy"),
    ],
)
def test_an_unknown_or_bad_profile_is_refused(hardware, match):
    refused(transform.HardwareError, match, hardware=hardware)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("cache_energy: 6.5\n", r"mine\.yaml: cache_energy is 6\.5"),
        ("word_bits: sixteen\n", r"mine\.yaml: word_bits is 'sixteen'"),
        ("weight_cache_bytes: 1\n", r"mine\.yaml: weight_cache_bytes is 1, which holds no word"),
        ("joules_per_mac: -1.0\n", r"mine\.yaml: joules_per_mac"),
        ("colour: red\n", r"mine\.yaml: unknown field colour"),
        ("- a\n- b\n", r"mine\.yaml: holds list"),
        ("a: [\n", r"mine\.yaml: not a readable YAML file"),
        ("\xff\xfe", r"mine\.yaml: "),
    ],
)
def test_a_bad_value_in_a_profile_is_named_with_its_file(tmp_path, text, match):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode("latin-1"))
    refused(transform.HardwareError, match, hardware=path)


def test_validation_data_must_hold_batches_and_fit():
    _, x = made(SmallConv)
    refused(transform.ArgumentError, r"^valid: no batches", valid=[])
    refused(
        transform.ArgumentError, r"^valid: 3 targets for 2", valid=[(x, torch.tensor([0, 1, 2]))]
    )


@pytest.mark.parametrize(
    "valid",
    [
        5,
        [(torch.zeros(2, 3), torch.tensor([0, 1]))],
        [(torch.zeros(2, 2, 8, 8), ["a", "b"])],
    ],
    ids=["no iterable", "wrong shape", "labels that are text"],
)
def test_validation_data_that_cannot_be_scored_is_refused(valid):
    refused(transform.CompressionError, "valid", valid=valid)


def test_an_output_folder_that_holds_something_is_refused_before_any_work(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    error = refused(transform.StorageError, "exists already and is not empty", out=tmp_path)
    assert "nothing is overwritten" in error.remedy
    refused(transform.StorageError, "exists already", out=tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    # Refused first: what is missing besides, an example, is not even looked for.
    with pytest.raises(transform.StorageError):
        transform.compress(made(SmallConv)[0], "energy<=50%", out=tmp_path)


def test_every_error_derives_from_one_base_and_leaves_the_model():
    model, example = made(SmallConv)
    digest = state_digest(model)
    for options in ({"budget": "ram<=50%"}, {"budget": "energy<=1%"}, {"hardware": "none"}):
        options = {"budget": "energy<=50%"} | options
        with pytest.raises(transform.CompressionError) as caught:
            transform.compress(model, example_inputs=example, **options)
        assert caught.value.what in str(caught.value)
        assert caught.value.remedy
    assert state_digest(model) == digest
