"""Forms of a quantized result: as codes, as floats, sparse, and the one that was fastest."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import transform
from energy_model.errors import ArgumentError, ExportError
from passes.methods.quantize_config import Quantize
from transform.forms import FORMS


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 10),
    ).eval()


def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 10, 10, generator=generator) for _ in range(3)]


@pytest.fixture(scope="module")
def integers() -> transform.Compressed:
    return transform.compress(
        net(),
        "weight_bits<=25%",
        images(),
        method=Quantize(7, 8),
        reconstruct=False,
        progress="none",
    )


@pytest.fixture(scope="module")
def codes() -> transform.Compressed:
    return transform.compress(
        net(),
        "nonzeros<=100%",
        images(),
        method=["magnitude", Quantize(4, None)],
        reconstruct=False,
        progress="none",
    )


def outputs(path: Path, x: torch.Tensor) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return np.asarray(found)


@pytest.mark.slow
def test_codes_are_smaller_than_floats_and_run_in_integers(
    integers: transform.Compressed, tmp_path: Path
) -> None:
    written = integers.export(tmp_path / "q.onnx", "qdq")
    assert written.census["QLinearConv"] == 2
    assert "Conv" not in written.census
    assert "FusedConv" not in written.census
    assert written.bytes < 0.5 * 4 * sum(p.numel() for p in net().parameters())
    assert set(written.modes) == {"reference", "default", "x64quantprecision"}
    x = images()[0]
    with torch.no_grad():
        expected = integers.model(x).numpy()
    assert np.abs(outputs(written.path, x) - expected).max() <= 0.05 * np.abs(expected).max()


@pytest.mark.slow
def test_a_form_that_exceeds_the_budget_is_refused(
    integers: transform.Compressed, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="does not keep weight_bits"):
        integers.export(tmp_path / "floats.onnx", "dense")


@pytest.mark.slow
def test_integers_that_exceed_the_budget_say_which_layers_are_float(tmp_path: Path) -> None:
    halves = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval().half()
    batches = [torch.randn(8, 16).half()]
    result = transform.compress(
        halves, "weight_bits<=60%", batches, method=Quantize(8, 8), progress="none"
    )
    with pytest.raises(ExportError, match=r"looser budget.*float weights in 0, 2"):
        result.export(tmp_path / "halves.onnx", "qdq")


@pytest.mark.slow
def test_floats_of_a_quantized_model_say_that_activations_are_not_rounded(tmp_path: Path) -> None:
    result = transform.compress(
        net(), "energy<=100%", images(), method=Quantize(8, 8), reconstruct=False, progress="none"
    )
    written = result.export(tmp_path / "floats.onnx", "dense")
    assert any("activations" in note for note in written.notes)


def fake_times(
    monkeypatch: pytest.MonkeyPatch, times: dict[str, float], floating: set[str]
) -> None:
    """Let the files take these times, so that the choice does not hang on the machine."""
    import bench.layer_plan
    import bench.measure

    def measure(paths: list[Path], **_: Any) -> Any:
        taken = [SimpleNamespace(median_ms=times[Path(p).stem]) for p in paths]
        return SimpleNamespace(measurements=taken)

    monkeypatch.setattr(bench.measure, "measure", measure)
    plan = SimpleNamespace(floating=frozenset(floating))
    monkeypatch.setattr(bench.layer_plan, "plan_layers", lambda *_, **__: plan)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("times", "floating", "form", "told"),
    [
        ({"integers": 1.02, "floats": 1.0}, set(), "qdq", "written: integers"),
        pytest.param(
            *({"integers": 2.0, "floats": 1.0}, set(), "dense", "written: floats"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *({"integers": 2.0, "floats": 2.0, "mixed": 1.0}, {"0"}, "qdq", "left in float"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_auto_writes_what_was_measured_to_be_fastest(
    codes: transform.Compressed,
    integers: transform.Compressed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    times: dict[str, float],
    floating: set[str],
    form: str,
    told: str,
) -> None:
    fake_times(monkeypatch, times, floating)
    result = integers if floating else codes
    if floating:  # without a limit on bits every form is allowed
        result = transform.compress(
            net(),
            "energy<=100%",
            images(),
            method=Quantize(7, 8),
            reconstruct=False,
            progress="none",
        )
    written = result.export(tmp_path / "auto.onnx", "auto")
    assert written.form == form
    assert any(told in note for note in written.notes)


@pytest.mark.slow
def test_auto_keeps_the_budget_even_if_that_is_slower(
    integers: transform.Compressed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_times(monkeypatch, {"integers": 2.0, "floats": 1.0}, set())
    written = integers.export(tmp_path / "auto.onnx", "auto")
    assert written.form == "qdq"
    assert any("would exceed the budget" in note for note in written.notes)


@pytest.mark.slow
def test_sparse_codes_are_smaller_than_codes(tmp_path: Path) -> None:
    result = transform.compress(
        net(),
        "nonzeros<=8%",
        images(),
        method=["magnitude", Quantize(7, 8)],
        reconstruct=False,
        progress="none",
    )
    dense, sparse = (result.export(tmp_path / f"{f}.onnx", f) for f in ("qdq", "sparse"))
    assert sparse.form == "sparse"
    assert sparse.bytes < dense.bytes
    assert sparse.census == dense.census
    x = images()[1]
    assert np.array_equal(outputs(sparse.path, x), outputs(dense.path, x))
    assert any("no faster than dense" in note for note in sparse.notes)


@pytest.mark.slow
def test_auto_measures_for_real(codes: transform.Compressed, tmp_path: Path) -> None:
    written = codes.export(tmp_path / "auto.onnx", "auto")
    assert any(note.startswith("measured here") for note in written.notes)


def test_unknown_forms_are_refused(codes: transform.Compressed, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="unknown form"):
        codes.export(tmp_path / "m.onnx", "tiny")
    assert "auto" in FORMS


@pytest.mark.slow
def test_a_quantized_result_comes_back_with_its_grids(
    integers: transform.Compressed, tmp_path: Path
) -> None:
    integers.save(tmp_path / "saved")
    loaded = transform.load(tmp_path / "saved")
    assert list(loaded.graph.encodings) == list(integers.graph.encodings)
    for name, encoding in integers.graph.encodings.items():
        other = loaded.graph.encodings[name]
        assert torch.equal(other.scale, encoding.scale)
        assert (other.bits, other.axis, other.block) == (7, encoding.axis, None)
    x = images()[0]
    with torch.no_grad():
        assert torch.equal(loaded.model(x), integers.model(x))
    assert str(loaded.certificate) == str(integers.certificate)
    assert (
        loaded.export(tmp_path / "a.onnx", "qdq").bytes
        == integers.export(tmp_path / "b.onnx", "qdq").bytes
    )


def test_an_opset_too_old_is_refused(codes: transform.Compressed, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="opset"):  # codes of four bits need 21
        codes.export(tmp_path / "m.onnx", "qdq", opset=18)
    with pytest.raises(ArgumentError, match="opset"):
        codes.export(tmp_path / "m.onnx", "qdq", opset=12)
    with pytest.raises(ArgumentError, match="one version"):
        codes.export(tmp_path / "m.onnx", "dense", opset=18)
    assert not list(tmp_path.iterdir())


def test_a_model_with_rounded_activations_is_not_compressed_again(
    integers: transform.Compressed,
) -> None:
    with pytest.raises(transform.PreconditionError, match="quantized already"):
        transform.compress(
            integers.model, "nonzeros<=50%", images(), method="magnitude", progress="none"
        )
