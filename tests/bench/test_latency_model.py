"""Networks to measure: their widths; then the whole way on a tiny network. No speed is asserted."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

import bench.latency_model as subject
import transform
from bench import latency_check
from bench.latency_model import MeasuredNetworks, measure_latency_model
from energy_model.errors import ArgumentError
from energy_model.latency import HeldOut, LatencyModel, LayerTime
from energy_model.latency_fit import TimedNetwork
from passes.graph import LayerRule
from passes.inputs import as_call
from passes.structure.groups import channel_groups
from passes.tracing.trace import trace

pytestmark = pytest.mark.slow


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU())
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 36, 4)).eval()


@pytest.fixture(scope="module")
def graph():
    model = net()
    return trace(model, as_call(model, torch.zeros(1, 3, 8, 8)))


def time(inputs, outputs):
    return 1e-6 * (3 + inputs * outputs)


def fake_times(monkeypatch, drift=()):
    """Let layers take what `time` says of their widths, times a factor in each turn."""
    factors = {"layers": list(drift), "whole": list(drift)}
    import onnx

    def widths(path):
        items = onnx.load(path).graph.initializer
        return [tuple(i.dims)[:2] for i in items if len(i.dims) > 1]

    def rounds(time):
        return [time, 3 * time, time]  # the second one is disturbed

    def layers(paths, *, names, rounds, runs):
        factor = factors["layers"].pop(0) if drift else 1
        found = []
        for path, known in zip(paths, names, strict=True):
            shapes = {i.name: tuple(i.dims) for i in onnx.load(path).graph.initializer}
            found.append(
                {site: 1e3 * factor * time(*shapes[name][:2]) for name, site in known.items()}
            )
        return tuple(found)

    def whole(paths, **kwargs):
        from types import SimpleNamespace as Bag

        about = {"machine": "m", "runtime": "r", "threads": 1, "batch": 1}
        factor = factors["whole"].pop(0) if drift else 1
        sums = [sum(time(*pair) for pair in widths(path)) for path in paths]
        return Bag(
            measurements=[
                Bag(round_ms=rounds(1e3 * factor * (1e-4 + 0.5 * s)), **about) for s in sums
            ]
        )

    monkeypatch.setattr(subject, "paired_layer_times", layers)
    monkeypatch.setattr(subject, "measure", whole)


def test_a_known_time_is_found_through_files(graph, monkeypatch):
    fake_times(monkeypatch)
    done = []
    model = measure_latency_model(
        graph, networks=12, progress=lambda number, total: done.append((number, total))
    )
    assert set(model.layers) == {"0", "2", "5"}
    assert model.held_out.worst < 1e-6
    assert (model.rest, model.scale) == pytest.approx((1e-4, 0.5), rel=1e-4)
    assert model.layer_seconds("2", 7, 9) == pytest.approx(0.5e-6 * (3 + 63))
    assert model.about == {"machine": "m", "runtime": "r", "threads": 1, "batch": 1}
    assert done == [(0, 12), (8, 12)]


def test_a_machine_that_is_slower_for_a_while_does_not_disturb_the_fit(graph, monkeypatch):
    fake_times(monkeypatch, drift=(1.0, 1.6, 1.0))
    model = measure_latency_model(graph, networks=20)
    assert model.held_out.worst < 1e-6
    assert (model.rest, model.scale) == pytest.approx((1e-4, 0.5), rel=1e-4)


def test_drawn_networks_range_over_all_allowed_widths(graph):
    networks = MeasuredNetworks(graph, multiple=4, seed=0)
    states = networks.draw(60)
    first, second, *others = ({n: int(k.sum()) for n, k in s.items()} for s in states)
    assert first == {"0": 16, "2": 32}
    assert second == {"0": 4, "2": 4}
    assert {s["0"] for s in others} == {4, 8, 12, 16}
    assert {s["2"] for s in others} == set(range(4, 33, 4))
    again = MeasuredNetworks(graph, multiple=4, seed=0).draw(60)
    assert all(np.array_equal(a[n], b[n]) for a, b in zip(states, again, strict=True) for n in a)
    widths = networks.widths(states[1])
    assert widths == {"0": (3, 4), "2": (4, 4), "5": (4 * 36, 4)}


def test_layers_that_are_left_alone_stay_whole(graph):
    kept = replace(graph, rules={"0": LayerRule(min_density=1.0)})
    networks = MeasuredNetworks(kept)
    assert all(set(state) == {"2"} for state in networks.draw(4))
    assert {g.name for g in channel_groups(graph).free} == {"0", "2"}


def test_too_few_networks(graph):
    with pytest.raises(ArgumentError, match="1 networks"):
        measure_latency_model(graph, networks=1)
    with pytest.raises(ArgumentError, match="0 networks"):
        latency_check.check(latency_check.Net.LENET5, unseen=0)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What the command writes, and says."""
    folder = tmp_path_factory.mktemp("check")
    words = ["--net", "lenet5", "--networks", "10", "--unseen", "5", "--out", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        fake_times(patch)
        patch.setattr(latency_check, "_NETS", {latency_check.Net.LENET5: (net, (1, 3, 8, 8))})
        result = CliRunner().invoke(app(), words)
        assert result.exit_code == 0
    data = json.loads((folder / "lenet5.json").read_text())
    return data, (folder / "lenet5.md").read_text(), result.stdout


def app():
    found = typer.Typer()
    found.command()(latency_check.main)
    return found


def test_the_check_predicts_networks_of_other_widths(written):
    data, page, said = written
    assert data["median_error"] <= data["worst_error"] < 1e-6
    assert len({json.dumps(row["widths"]) for row in data["unseen"]}) == 5
    assert all(row["predicted"] == pytest.approx(row["measured"]) for row in data["unseen"])
    assert data["command"].startswith("python -m bench.latency_check --net lenet5 --networks 10")
    assert data["command"] in page
    assert page.strip() in said
    assert "goal of 10% in the median: met" in page
    assert page.count("\n| ") == 6
    model = LatencyModel.from_dict(data["model"])
    widths = {"0": (3, 5), "2": (5, 7), "5": (252, 4)}
    assert model.predict(widths) == pytest.approx(
        1e-4 + 0.5 * sum(time(*pair) for pair in widths.values())
    )


def test_a_model_that_predicts_badly_is_said_to():
    model = LatencyModel(
        {"0": LayerTime((1.0, 0, 0, 0))},
        held_out=HeldOut(0.1, 0.2, 3),
        about={"machine": "m", "runtime": "r", "threads": 1, "batch": 1},
    )
    unseen = tuple(TimedNetwork({"0": (1, 1)}, {}, seconds) for seconds in (0.5, 0.8, 2.0))
    found = latency_check.Checked("net", "command", model, 3, unseen, 1.0, (0.0, 0.0, 0.0))
    assert found.errors == pytest.approx((1.0, 0.25, 0.5))
    assert found.median == pytest.approx(0.5)
    assert "median 50.0%, worst 100.0%; goal of 10% in the median: NOT met" in found.markdown()
    assert found.blind == pytest.approx(0.6)  # 0.8 s of each
    assert found.order == 0.0  # it says the same of all


def test_a_prediction_is_told_by_its_order_too():
    model = LatencyModel({"0": LayerTime((0, 0, 0, 1.0))})
    widths = {3: 0.5, 1: 0.7, 2: 0.6, 4: 0.4}
    unseen = tuple(TimedNetwork({"0": (w, 1)}, {}, seconds) for w, seconds in widths.items())
    found = latency_check.Checked("net", "command", model, 3, unseen, 1.0, (0.0, 0.0, 0.0))
    assert found.order == pytest.approx(-1.0)
    same = replace(found, unseen=tuple(replace(n, seconds=n.widths["0"][0]) for n in unseen))
    assert same.order == pytest.approx(1.0)


def test_the_command_refuses_too_few_networks():
    result = CliRunner().invoke(app(), ["--net", "lenet5", "--networks", "1"])
    assert result.exit_code == 2


@pytest.mark.slow
def test_the_whole_way_in_onnx_runtime():
    """Of a net of milliseconds, whose smallest structure is far below also on a busy machine."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 96, 3), nn.ReLU())
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 4))
    result = transform.compress(
        model.eval(), "latency<=60%", example_inputs=torch.zeros(1, 3, 40, 40), progress="none"
    )
    [row] = result.certificate.rows
    assert row.kind == "measured"
    assert row.measurement["threads"] == row.measurement["batch"] == 1
    assert row.measurement["machine"]
    assert not row.fails
    details = result.plan.details["latency"]
    assert details["trials"] >= 1
    assert details["predicted"] > 0
    assert any(keep.keep < keep.size for keep in result.plan.rows)
    assert result.model[0].out_channels == result.plan.kept["0"]
