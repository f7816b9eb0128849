from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from passes import torchvision_shim
from passes.torchvision_shim import ensure_torchvision_importable

ROOT = Path(__file__).parents[2]
needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"
)


def in_a_fresh_process(code):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@needs_torchvision
def test_torchvision_imports_in_a_fresh_process():
    code = (
        "from passes.torchvision_shim import ensure_torchvision_importable as ensure\n"
        "ensure(); ensure()\n"
        "import torchvision\n"
        "ensure()\n"
        "torchvision.models.resnet18(weights=None)\n"
        "print('imported')"
    )
    result = in_a_fresh_process(code)
    assert result.stdout == "imported\n", result.stderr


@needs_torchvision
def test_the_schemas_are_there_and_stay():
    ensure_torchvision_importable()
    assert hasattr(torch.ops.torchvision, "nms")
    assert hasattr(torch.ops.torchvision, "qnms")


def test_nothing_happens_without_torchvision(monkeypatch):
    monkeypatch.setattr(torchvision_shim, "_declared", [])
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    ensure_torchvision_importable()
    assert torchvision_shim._declared == []


@needs_torchvision
def test_nothing_is_declared_when_the_schemas_exist(monkeypatch):
    ensure_torchvision_importable()
    monkeypatch.setattr(torchvision_shim, "_declared", [])
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    ensure_torchvision_importable()
    assert torchvision_shim._declared == []
