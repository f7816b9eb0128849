"""`transform structure`: the groups, the reasons, and the proof."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import transform
from transform.cli.app import app
from transform.cli.model import load_model

RESNET = ["structure", "bench.zoo:resnet20", "--input", "2,3,32,32"]


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})


def test_the_table_is_that_of_python():
    result = run(*RESNET)
    assert result.exit_code == 0, result.output
    expected = transform.structure(load_model("bench.zoo:resnet20"), torch.zeros(2, 3, 32, 32))
    assert result.stdout == f"{expected}\n"
    assert "frozen: meets channels that always stay in add in layer2.0" in result.stdout


@pytest.mark.slow
def test_json_and_proof():
    result = run(*RESNET, "--json", "--prove", 0)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {group["name"] for group in found["groups"]} >= {"conv1", "linear"}
    proof = found["proof"]
    assert proof["error"] <= 1e-4 * proof["largest"]
    assert proof["after"]["params"] < 0.6 * proof["before"]["params"]
    assert "gated and shrunk differ by" in run(*RESNET, "--prove", 1).stdout


def test_bad_input():
    wrong = run("structure", "bench.zoo:resnet20", "--input", "2,5,32,32")
    assert wrong.exit_code != 0
    assert "Traceback" not in wrong.output
