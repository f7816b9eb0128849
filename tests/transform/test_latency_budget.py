"""A limit on the latency from the request to the certificate; the clock is set by the tests."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import transform
from bench.check_certificate import check
from energy_model.errors import PostconditionError, StorageError
from energy_model.latency import LatencyModel, LayerTime
from energy_model.timing import Timing
from passes.tracing.trace import trace
from transform.certificate import Certificate, CertificateRow
from transform.limits import Subject
from transform.stopwatch import Stopwatch, measure_file

EXAMPLE = torch.zeros(1, 2, 8, 8)
WHERE = {"threads": 1, "batch": 1, "runtime": "some runtime", "machine": "some machine"}


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Conv2d(2, 24, 3), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.ReLU())
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 4)).eval()


def predictor(graph):
    return LatencyModel({site.name: LayerTime((0.0, 0.0, 0.0, 1e-8)) for site in graph.sites})


def widths_of(model):
    return {
        "0": (2, model[0].out_channels),
        "2": (model[0].out_channels, model[2].out_channels),
    } | {"5": (model[5].in_features, 4)}


class Clock:
    """Instead of measuring: what the widths predict, times a factor for the whole process."""

    def __init__(self, monkeypatch, spread=0.01):
        self.factor, self.spread, self.files = 1.0, spread, 0
        self.models, self.machine = 0, WHERE["machine"]
        monkeypatch.setattr("bench.measure.machine_name", lambda: self.machine)
        monkeypatch.setattr(Subject, "timing", lambda subject: self.measured(subject))
        monkeypatch.setattr("bench.latency_model.measure_latency_model", self.predictor)

    def predictor(self, graph, *, multiple, seed):
        self.models += 1
        return predictor(graph)

    def measured(self, subject):
        def measure():
            self.files += 1
            shapes = {s.name: s.uses[0].shape for s in subject.graph.sites}
            widths = {name: (s.in_channels, s.out_channels) for name, s in shapes.items()}
            seconds = self.factor * predictor(subject.graph).predict(widths)
            return Timing(seconds, self.spread, {**WHERE, "machine": self.machine})

        return measure() if subject.timed is None else subject.timed(measure)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def compress(budget="latency<=50%", **kwargs):
    kwargs.setdefault("example_inputs", EXAMPLE)
    return transform.compress(net(), budget, progress="none", **kwargs)


def test_auto_takes_the_method_that_removes_channels(clock):
    result = compress()
    assert result.method == "l1"
    assert any("only removing channels lowers latency" in d.why for d in result.decisions)
    [row] = result.certificate.rows
    assert row.holds
    assert not row.undecidable
    assert row.reached <= 0.475 * row.base
    assert row.base == predictor(trace(net(), result.graph.call)).predict(widths_of(net()))
    assert clock.models == 1


def test_absolute_limits_and_others_beside_them(clock):
    base = compress().certificate.rows[0].base
    result = compress(f"latency<={base * 0.4e6:.3f} us, params<=60%", method="l1")
    assert result.certificate.holds
    assert {row.limit for row in result.certificate.rows} == {"latency", "params"}


def test_the_certificate_says_how_it_was_measured(clock):
    result = compress()
    assert "latency<=50%: holds, reached" in str(result.certificate)
    how = "(median, rounds vary by 1.0%, the original's by 1.0%) at batch 1, 1 thread, some machine"
    assert how in str(result.certificate)
    assert str(result.certificate) in repr(result)
    row = result.certificate.to_dict()["limits"][0]
    assert (row["kind"], row["undecidable"], row["holds"]) == ("measured", False, True)
    again = Certificate.from_dict(json.loads(json.dumps(result.certificate.to_dict())))
    assert again.rows == result.certificate.rows


def row(reached, spread=0.01, maximum=1e-3):
    return CertificateRow(
        limit="latency",
        asked="latency<=1 ms",
        base=2e-3,
        maximum=maximum,
        reached=reached,
        unit="s",
        kind="measured",
        counted_from="file",
        file="model.onnx",
        sha256="0",
        measurement={"spread": spread, **WHERE},
    )


@pytest.mark.parametrize(
    ("reached", "spread", "holds", "undecidable", "fails", "word"),
    [
        (0.9e-3, 0.01, True, False, False, "holds"),
        (0.97e-3, 0.01, True, True, False, "undecidable within the noise"),
        (1.03e-3, 0.01, False, True, False, "undecidable within the noise"),
        (1.1e-3, 0.01, False, False, True, "FAILS"),
        (1.1e-3, 0.2, False, True, False, "undecidable within the noise"),
    ],
)
def test_what_a_measured_row_claims(reached, spread, holds, undecidable, fails, word):
    found = row(reached, spread)
    assert (found.holds, found.undecidable, found.fails) == (holds, undecidable, fails)
    assert f"latency<=1 ms: {word}, reached" in str(found)
    assert f"rounds vary by {spread:.1%}" in str(found)
    assert ("the limit is 1 ms" in str(found)) == undecidable


def test_counted_rows_are_never_undecidable():
    exact = replace(row(1.01e-3), kind="exact", measurement=None)
    assert not exact.undecidable
    assert exact.fails


def test_a_machine_that_became_slower_fails_the_certificate_not_silently(clock, monkeypatch):
    from transform import pipeline

    certified = pipeline._certified

    def slower(*arguments):
        clock.factor = 1.4
        return certified(*arguments)

    monkeypatch.setattr(pipeline, "_certified", slower)
    with pytest.raises(
        PostconditionError, match=r"allows .* us, the finished model has .* us"
    ) as e:
        compress()
    assert "slower" in e.value.remedy


def test_within_the_noise_the_result_stands_and_says_so(clock, monkeypatch):
    from transform import pipeline

    certified = pipeline._certified

    def slower(*arguments):
        clock.factor = 1.07
        return certified(*arguments)

    monkeypatch.setattr(pipeline, "_certified", slower)
    result = compress()
    assert result.certificate.rows[0].undecidable
    assert "undecidable within the noise" in repr(result)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A result, its file, and the certificate beside it."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        result = compress()
        before = clock.files
        found = result.export(tmp_path_factory.mktemp("export") / "model.onnx")
        assert clock.files == before + 1
    return result, found


@pytest.mark.slow
def test_an_exported_file_is_measured_again(exported, clock, tmp_path):
    result, file = exported
    assert check(file.certificate) == []
    clock.factor = 1.4
    with pytest.raises(PostconditionError, match="the file takes"):
        result.export(tmp_path / "slow.onnx")


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({}, ()),
        ({"undecidable": True}, ("latency, holds",)),
        ({"reached": 1.0, "undecidable": True}, ("latency, holds",)),
        ({"maximum": 1.0}, ("latency, maximum",)),
        ({"holds": False}, ("latency, holds",)),
    ],
)
def test_the_checker_believes_no_claim_of_noise_that_the_spread_does_not_bear(
    exported, tmp_path, change, wrong
):
    _, file = exported
    claims = json.loads(file.certificate.read_text())
    claims["limits"][0] |= change
    certificate = tmp_path / "model.certificate.json"
    certificate.write_text(json.dumps(claims))
    found = check(certificate, file.path)
    assert all(any(line.startswith(each) for line in found) for each in wrong)
    assert len(found) == len(wrong)


def data():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 2, 8, 8, generator=generator)
    return [(images, torch.arange(8) % 4)] * 3


class StopError(Exception):
    pass


@pytest.mark.slow
def test_a_resumed_training_goes_on_with_what_was_measured_before(clock, tmp_path, monkeypatch):
    arguments = {"data": data(), "out": tmp_path / "run", "train": 3, "example_inputs": None}
    whole = compress(**{**arguments, "out": tmp_path / "whole"})
    from transform.training.checkpoint import Checkpoints

    save = Checkpoints.save

    def killed(self, epoch, state):
        save(self, epoch, state)
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed)
        with pytest.raises(StopError):
            compress(**arguments)
    assert (tmp_path / "run/checkpoints/measured.json").is_file()
    clock.machine = "another machine"
    with pytest.raises(StorageError, match=r"measured latencies on another machine \(some machine"):
        compress(**arguments)
    clock.machine = WHERE["machine"]
    clock.factor, models = 0.9, clock.models  # measured anew, it would choose another structure
    resumed = compress(**arguments)
    assert clock.models == models
    assert resumed.plan.kept == whole.plan.kept
    assert resumed.limits == whole.limits
    first, second = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in second)
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_share_of_another_machines_time_is_refused(clock, tmp_path):
    first = compress()
    assert first.timing == Timing(first.certificate.rows[0].base, 0.01, WHERE)
    loaded = transform.load(first.save(tmp_path / "first"), net())
    assert (loaded.timing, loaded.limits) == (first.timing, first.limits)
    again = transform.compress(loaded, "latency<=40%", progress="none")
    assert again.certificate.rows[0].base == first.certificate.rows[0].base
    smaller = transform.compress(again, "params<=30%", progress="none")
    assert smaller.timing == first.timing
    clock.machine, clock.factor = "a faster machine", 0.25
    for result in (loaded, again, smaller):
        with pytest.raises(
            transform.UnsupportedBudget, match=r"another machine \(some machine\)"
        ) as caught:
            transform.compress(result, "latency<=30%", progress="none")
        assert "absolute limit" in str(caught.value)
    limit = 0.2 * first.certificate.rows[0].base * clock.factor
    found = transform.compress(loaded, f"latency<={limit * 1e6} us", progress="none")
    assert found.certificate.rows[0].reached <= limit


def test_the_noise_of_the_original_counts_in_its_shares_alone(clock, monkeypatch):
    from transform import pipeline

    resolve = pipeline.resolve

    def after_a_noisy_original(*arguments):
        clock.spread = 0.6
        found = resolve(*arguments)
        clock.spread = 0.01
        return found

    base = compress().certificate.rows[0].base
    monkeypatch.setattr(pipeline, "resolve", after_a_noisy_original)
    share, time = compress("latency<=50%"), compress(f"latency<={base * 0.5e6} us")
    for result, noise in ((share, 0.6), (time, 0.0)):
        [row] = result.certificate.rows
        assert row.measurement.get("base_spread", 0.0) == noise
        assert row.holds and not row.undecidable
    assert share.certificate.rows[0].reached < 0.5 * time.certificate.rows[0].reached


def test_what_was_fitted_is_anchored_to_the_network_by_itself(clock):
    """Networks that took turns while the model was fitted were three times as slow."""
    with pytest.MonkeyPatch.context() as patch:
        layers = {name: LayerTime((0.0, 0.0, 0.0, 3e-8)) for name in ("0", "2", "5")}
        patch.setattr(
            "bench.latency_model.measure_latency_model", lambda *_, **__: LatencyModel(layers)
        )
        files = clock.files
        result = compress()
        details = result.plan.details["latency"]
        assert details["predicted"] == pytest.approx(details["measured"])
        assert clock.files - files <= 4  # the original twice, one candidate, the result
        config = transform.L1Channels(steps=3)
        assert compress("latency<=20%", method=config, data=data(), train=3).certificate.holds


@pytest.mark.slow
def test_of_a_quantized_model_what_is_measured_is_what_is_written(monkeypatch, tmp_path):
    clock = Clock(monkeypatch)
    chain = ["l2", transform.Quantize(weights=8, activations=8)]
    forms = []
    measured = Subject.timing

    def noted(subject):
        forms.append(subject.exported.notes)
        return measured(subject)

    monkeypatch.setattr(Subject, "timing", noted)
    result = compress("latency<=60%", data=data(), train=False, method=chain)
    assert clock.files
    assert any("written: " in note for notes in forms for note in notes)
    result.export(tmp_path / "model.onnx")


def test_a_stopwatch_forgets_other_runs_and_what_is_not_to_be_resumed(clock, tmp_path):
    def watch(run="a", **kwargs):
        return Stopwatch(tmp_path, run, **kwargs)

    assert watch().timing("file", lambda: Timing(1.0, 0.1, WHERE)).seconds == 1.0
    known = watch().timing("file", lambda: Timing(2.0))
    assert (known.seconds, known.spread, known.details) == (1.0, 0.1, WHERE)
    assert watch("b").timing("file", lambda: Timing(3.0)).seconds == 3.0
    assert watch("b", resume=False).timing("file", lambda: Timing(4.0)).seconds == 4.0
    memory = Stopwatch(None, "")
    assert memory.timing("file", lambda: Timing(5.0)).seconds == 5.0
    assert memory.timing("file", lambda: Timing(6.0)).seconds == 5.0


def test_unsteady_rounds_are_measured_again_and_the_steadiest_counts(monkeypatch, tmp_path):
    found = iter([(1.0, 0.4), (3.0, 0.2), (2.0, 0.3)])
    asked = []

    def measure(paths, *, rounds, **kwargs):
        from types import SimpleNamespace

        median, spread = next(found)
        asked.append(rounds)
        one = SimpleNamespace(median_ms=median, spread=spread, **WHERE)
        return SimpleNamespace(measurements=(one,))

    monkeypatch.setattr("bench.measure.measure", measure)
    timing = measure_file(tmp_path / "model.onnx")
    assert (timing.seconds, timing.spread) == (3e-3, 0.2)
    assert asked == sorted(set(asked))
    assert len(asked) == 3
    found = iter([(1.0, 0.02)])
    assert measure_file(tmp_path / "model.onnx").noise == 0.05
