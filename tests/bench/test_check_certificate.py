"""The checker's verdicts: an honest certificate passes, and every kind of lie is seen."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_builder as build
import pytest
from onnx import helper, numpy_helper

import bench.check_certificate as checker
from bench.check_certificate import UnusableInputError, check, main
from energy_model.hardware import load_hardware

SCRIPT = Path(checker.__file__)
PARTS = [SCRIPT, *sorted(SCRIPT.parent.glob("certificate_*.py"))]
ORACLE = Path(__file__).parents[1] / "data" / "energy-oracle.json"
MACS = 416520


def _limit(limit, asked, maximum, base, reached, kind="exact", **more):
    row = {"limit": limit, "asked": asked, "maximum": maximum, "base": base, "reached": reached}
    return row | {"unit": "", "kind": kind, "holds": True} | more


def _claims(model: Path):
    """An honest certificate of the half-pruned LeNet-5; its energies come from the oracle."""
    rows = json.loads(ORACLE.read_text())["lenet5"]["w50"]
    parts = {
        "weights": sum(row["W"] for row in rows),
        "compute": sum(row["C"] for row in rows),
        "compute_relaxed": sum(row["rC"] for row in rows),
        "activations": sum(row["X"] for row in rows),
        "positions": 0,
        "exact": 9856244,
        "relaxed": 9856244,
    }
    layers = [
        {
            "name": row["name"],
            "initializers": [f"{row['name']}.weight"],
            "weights": 2 * row["nw"],
            "nonzeros": row["nw"],
            "bits": 32,
            "uncounted": "",
        }
        for row in rows
    ]
    size = model.stat().st_size
    return {
        "format": "transform-certificate",
        "version": 1,
        "file": {
            "name": model.name,
            "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
            "bytes": size,
        },
        "hardware": load_hardware("eyeriss").to_dict(),
        "limits": [
            _limit("energy", "<=60%", 17107544 * 60 // 100, 17107544, 9856244),
            _limit("nonzeros", "<=50%", 30735, 61470, 30735),
            _limit("weight_bits", "<=50%", 61470 * 16, 61470 * 32, 30735 * 32),
            _limit("macs", "<=1M", 10**6, MACS, MACS),
            _limit("size", "<=300 kB", 300_000, size, size),
            _limit("params", "<=70000", 70_000, 61706, 61706),
            _limit("latency", "<=3 ms", 0.003, 0.004, 0.002, kind="measured"),
            _limit("sparse_macs", "<=60%", MACS * 60 // 100, MACS, MACS // 2),
        ],
        "layers": layers,
        "totals": {"macs": MACS, "weights": 61470, "nonzeros": 30735, "energy": parts},
    }


@pytest.fixture
def model(tmp_path):
    return build.save(build.lenet5(build.every_other), tmp_path / "model.onnx")


@pytest.fixture
def certify(tmp_path, model):
    def write(change=lambda claims: None):
        claims = _claims(model)
        change(claims)
        path = tmp_path / "model.certificate.json"
        path.write_text(json.dumps(claims))
        return path

    return write


def test_an_honest_certificate_passes(certify, capsys):
    certificate = certify()
    assert check(certificate) == []
    assert main([str(certificate)]) == 0
    lines = capsys.readouterr().out.splitlines()
    unchecked = [line.split()[0] for line in lines if line.rstrip().endswith("not checked")]
    assert unchecked == ["params", "latency"]
    energy = next(line.split() for line in lines if line.startswith("energy "))
    assert energy == ["energy", "<=60%", "9856244", "9856244", "yes"]


def _rewrite(path: Path, name: str, change) -> None:
    proto = onnx.load(path)
    tensor = next(item for item in proto.graph.initializer if item.name == name)
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(proto, path)


def _revive(array):
    array.flat[1] = 1e-30


def test_one_revived_weight_is_seen(certify, model):
    """The size stays the same; the digest, the counts and the energies do not."""
    certificate = certify()
    _rewrite(model, "features.3.weight", _revive)
    problems = check(certificate)
    told = {problem.partition(":")[0] for problem in problems}
    assert told == {
        "sha256",
        "energy",
        "nonzeros",
        "weight_bits",
        "sparse_macs",
        "energy, weights",
        "energy, compute",
        "energy, compute_relaxed",
        "energy, exact",
        "energy, relaxed",
        "layer features.3, nonzeros",
    }
    assert main([str(certificate)]) == 1


def test_a_digest_made_to_fit_does_not_hide_a_revived_weight(certify, model):
    _rewrite(model, "classifier.4.weight", _revive)
    problems = check(certify())
    assert "nonzeros: the certificate says 30735, the file says 30736" in problems
    assert not any("sha256" in problem for problem in problems)


def test_another_value_of_a_kept_weight_is_seen_by_the_digest(certify, model):
    certificate = certify()
    _rewrite(model, "features.0.weight", lambda array: array.__setitem__((0, 0, 0, 0), 2.0))
    assert [problem.partition(":")[0] for problem in check(certificate)] == ["sha256"]


def _set(path, value):
    def change(claims):
        *parents, last = path
        for key in parents:
            claims = claims[key]
        claims[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("file", "bytes"), 1, "bytes"),
        (("limits", 0, "reached"), 9856243, "energy"),
        (("limits", 0, "base"), 17107545, "energy, base"),
        (("limits", 0, "maximum"), 11_000_000, "energy, maximum"),
        (("limits", 0, "maximum"), 9_000_000, "energy, holds"),
        (("limits", 1, "base"), 61471, "nonzeros, base"),
        (("limits", 1, "holds"), False, "nonzeros, holds"),
        (("limits", 2, "reached"), 30735 * 16, "weight_bits"),
        (("limits", 3, "reached"), 1, "macs"),
        (("limits", 4, "reached"), 1, "size"),
        (("limits", 5, "counted_from"), "file", "params"),
        (("limits", 6, "reached"), 0.0031, "latency, holds"),
        (("limits", 7, "reached"), MACS // 2 - 1, "sparse_macs"),
        (("limits", 7, "base"), MACS + 1, "sparse_macs, base"),
        (("limits", 7, "maximum"), MACS, "sparse_macs, maximum"),
        (("limits", 7, "maximum"), MACS // 2 - 1, "sparse_macs, holds"),
        (("totals", "macs"), 1, "macs"),
        (("totals", "weights"), 1, "weights"),
        (("totals", "energy", "activations"), 1, "energy, activations"),
        (("hardware", "dram_energy"), 100, "energy"),
        (("layers", 1, "nonzeros"), 1, "layer features.3, nonzeros"),
        (("layers", 1, "weights"), 1, "layer features.3, weights"),
        (("layers", 1, "initializers"), ["gone"], "layer features.3"),
        (("layers", 1, "initializers"), [], "weight features.3.weight"),
        (("layers", 1, "initializers"), ["features.0.weight"], "weight features.3.weight"),
    ],
)
def test_every_false_claim_is_seen(certify, path, value, told):
    problems = check(certify(_set(path, value)))
    assert told in [problem.partition(":")[0] for problem in problems]


def test_params_are_recounted_where_counted_from_the_file(certify):
    assert (
        check(certify(_set(("limits", 5), _limit("params", "<=70000", 70_000, 61706, 61470)))) == []
    )
    row = _limit("params", "<=70000", 70_000, 61706, 61470, counted_from="file")
    assert check(certify(_set(("limits", 5), row))) == []


def test_a_layer_may_be_missing_only_with_a_reason(certify):
    absent = {"name": "head", "initializers": ["head.weight"], "weights": 4, "nonzeros": 4}

    def with_reason(reason):
        return lambda claims: claims["layers"].append(absent | {"uncounted": reason})

    assert check(certify(with_reason("never used by the forward"))) == []
    assert [p.partition(":")[0] for p in check(certify(with_reason("")))] == ["layer head"]


def test_recurrent_initializers_of_one_layer_add_up(tmp_path):
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=2)
    constants = {"w": build.every_other(1, 8, 3), "r": build.ones(1, 8, 2)}
    path = build.save(build.model([node], constants, ("x", (5, 1, 3))), tmp_path / "lstm.onnx")
    found = checker.recount(path, load_hardware("eyeriss").to_dict())
    layer = {"name": "lstm", "initializers": ["w", "r"], "weights": 40, "nonzeros": 28}
    rows = list(checker._layer_rows([layer | {"uncounted": ""}], found))
    assert [row.ok for row in rows] == [True, True]


@pytest.mark.parametrize(
    "change",
    [
        _set(("format",), "something else"),
        _set(("version",), 2),
        lambda claims: claims.pop("totals"),
        lambda claims: claims["hardware"].pop("index_bits"),
        _set(("hardware", "word_bits"), 0),
        _set(("limits", 0, "maximum"), None),
        _set(("file", "name"), "gone.onnx"),
        _set(("layers",), 3),
    ],
)
def test_unusable_certificates_are_refused(certify, change, capsys):
    certificate = certify(change)
    with pytest.raises(UnusableInputError):
        check(certificate)
    assert main([str(certificate)]) == 2
    assert "unusable input" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b"\xff\xfe"])
def test_a_damaged_certificate_is_refused(tmp_path, content):
    path = tmp_path / "certificate.json"
    path.write_bytes(content)
    with pytest.raises(UnusableInputError, match=r"certificate\.json"):
        check(path)


def test_a_damaged_model_and_a_missing_certificate_are_refused(certify, model, tmp_path):
    certificate = certify()
    model.write_bytes(model.read_bytes()[:1000])
    with pytest.raises(UnusableInputError, match="not a readable ONNX file"):
        check(certificate)
    with pytest.raises(UnusableInputError):
        check(tmp_path / "gone.json")


def test_the_model_may_lie_elsewhere(certify, model, tmp_path):
    certificate = certify()
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    moved = shutil.move(model, elsewhere / "renamed.onnx")
    assert check(certificate, moved) == []


def _run(script, *arguments, cwd):
    command = [sys.executable, "-I", str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_the_script_stands_alone(certify, tmp_path):
    """A copy runs in isolated mode, where the project's folder is not on the path."""
    folder = tmp_path / "elsewhere" / "bench"
    folder.mkdir(parents=True)
    for path in PARTS:
        shutil.copy(path, folder)
    done = _run(folder / SCRIPT.name, certify(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("yes") > 20


def test_the_script_runs_from_any_folder(certify, tmp_path):
    done = _run(SCRIPT, certify(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_script_imports_only_onnx_and_numpy_and_its_own_parts():
    names = set()
    for path in PARTS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names.add(node.module)
    foreign = {n for n in names if n.partition(".")[0] not in {*sys.stdlib_module_names, "numpy"}}
    assert foreign - {"onnx"} == {f"bench.{path.stem}" for path in PARTS[1:]}


def test_half_precision_weights_count_their_stored_bits(tmp_path):
    weight = build.every_other(4, 5).astype(np.float16)
    node = [
        helper.make_node("Cast", ["w"], ["c"], to=1),
        helper.make_node("MatMul", ["x", "c"], ["y"]),
    ]
    path = build.save(build.model(node, {"w": weight}, ("x", ("n", 4))), tmp_path / "half.onnx")
    found = checker.recount(path, load_hardware("eyeriss").to_dict())
    assert (found.counts["weight_bits"], found.counts["params"]) == (10 * 16, 20)
