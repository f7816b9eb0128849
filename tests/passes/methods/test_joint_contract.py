"""The contract of methods, for all that the method `joint` can be told of nominal bits."""

from __future__ import annotations

import gc
from dataclasses import replace
from types import SimpleNamespace

import pytest

from passes.methods import registry
from passes.methods.joint import SPEC, Joint
from transform.result import Compressed
from transform.testing import check_method


@pytest.fixture(autouse=True)
def without_files(monkeypatch):
    """Nominal bits alone, without the files of a finished run, which take longer than training."""
    save = Compressed.save

    def saved(self, directory, *, onnx=False):
        return save(self, directory)

    spec = replace(SPEC, serves=frozenset({"weight_bits"}))
    entry = SimpleNamespace(name="joint", value="a test", load=lambda: spec)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    monkeypatch.setattr(Compressed, "save", saved)
    monkeypatch.setattr("transform.pipeline.count_sizes", lambda *args: None)
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        Joint(project_every=2, dual_every=4),
        Joint(levels="uniform", project_every=3),
        Joint(mode="quantize", freeze_bits=0.8),
        Joint(mode="prune", momentum="keep"),
        Joint(allocate="knapsack", prox=False, finetune=0.0),
        Joint(honest=True, significand=9, stages=2),
    ],
    ids=lambda config: f"{config.mode} {config.levels} {config.allocate} {config.honest}",
)
def test_the_contract_is_kept(config):
    check_method(config)
