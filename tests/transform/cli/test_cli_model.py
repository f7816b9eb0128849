"""MODEL, --weights and --input."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from energy_model.errors import ArgumentError
from transform.cli.model import DTYPES, example_inputs, load_model, parse_shape

MODULE = """
from torch import nn
def net(): return nn.Linear(8, 3)
ready = nn.Linear(2, 2)
def number(): return 3
"""


@pytest.fixture(autouse=True)
def nets(tmp_path, monkeypatch):
    (tmp_path / "cli_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("cli_nets", None)


def test_a_seed_decides_the_random_weights_and_the_global_state_stays():
    state = torch.random.get_rng_state()
    first, again, other = (load_model("cli_nets:net", seed=seed).weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_models_of_torchvision_and_of_the_zoo():
    assert type(load_model("torchvision.models:squeezenet1_1")).__name__ == "SqueezeNet"
    assert type(load_model("bench.zoo:lenet5")).__name__ == "LeNet5"


def test_a_module_itself_is_taken_as_it_is():
    assert isinstance(load_model("cli_nets:ready"), nn.Linear)


def test_what_is_no_model_is_refused():
    with pytest.raises(ArgumentError, match="gives int, not a torch"):
        load_model("cli_nets:number")


def test_weights_are_loaded(tmp_path):
    state = nn.Linear(8, 3).state_dict()
    torch.save(state, tmp_path / "w.pt")
    torch.save({"state_dict": state, "epoch": 7}, tmp_path / "checkpoint.pt")
    save_file(state, tmp_path / "w.safetensors")
    for name in ("w.pt", "checkpoint.pt", "w.safetensors"):
        model = load_model("cli_nets:net", tmp_path / name)
        assert torch.equal(model.weight, state["weight"]), name


def test_bad_weights_are_refused(tmp_path):
    torch.save(nn.Linear(8, 4).state_dict(), tmp_path / "shape.pt")
    torch.save(nn.Conv2d(1, 1, 1, bias=False).state_dict(), tmp_path / "keys.pt")
    torch.save(nn.Linear(8, 3), tmp_path / "pickled.pt")
    torch.save({"epoch": 7}, tmp_path / "none.pt")
    torch.save([1], tmp_path / "list.pt")
    (tmp_path / "noise.pt").write_bytes(b"not a file of torch")
    (tmp_path / "noise.safetensors").write_bytes(b"neither")
    messages = {
        "shape.pt": "do not fit Linear: size mismatch",
        "keys.pt": "do not fit Linear",
        "pickled.pt": r"cannot be read \(UnpicklingError: Weights only load failed\)",
        "none.pt": r"holds the keys \['epoch'\]",
        "list.pt": "holds list",
        "noise.pt": "cannot be read",
        "noise.safetensors": "cannot be read",
        "missing.pt": r"cannot be read \(FileNotFoundError: No such file",
    }
    for name, message in messages.items():
        with pytest.raises(ArgumentError, match=message) as caught:
            load_model("cli_nets:net", tmp_path / name)
        assert caught.value.where == str(tmp_path / name)


def test_example_inputs_have_their_shapes_and_types():
    image, ids, mask = example_inputs(["2,3,8,8", "1,12:int64", "1,12:bool"])
    assert (image.shape, image.dtype) == ((2, 3, 8, 8), torch.float32)
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)
    assert not ids.any()
    assert image.std() > 0.5
    assert torch.equal(example_inputs(["2,3,8,8"])[0], image)


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_is_made(name):
    [found] = example_inputs([f"1,4:{name}"])
    assert found.dtype == getattr(torch, name)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("1,3:int", "unknown type 'int'. One of float32"),
        ("1,,3", "is not a shape"),
        ("", "is not a shape"),
        ("0,3", "is not a shape"),
        ("-1,3", "is not a shape"),
        ("1.5", "is not a shape"),
        ("1,999999999999,999999", "do not fit into memory"),
    ],
)
def test_bad_inputs_are_refused(spec, message):
    with pytest.raises(ArgumentError, match=message):
        example_inputs([spec])


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=5), st.sampled_from([",", "x", ", "]))
def test_shapes_round_trip(sizes, comma):
    assert parse_shape(comma.join(map(str, sizes)), "--input") == tuple(sizes)
