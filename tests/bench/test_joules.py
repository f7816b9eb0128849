"""Measured energy: None without counters, never 0. The counters are played by a stand-in."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from bench.joules import open_meter


@pytest.fixture
def zeus(monkeypatch):
    """Installs a stand-in for `zeus.monitor` with the given counters."""

    def install(packages, cpu=None, dram=None, failure=None):
        class ZeusMonitor:
            def __init__(self, gpu_indices):
                assert gpu_indices == []
                if failure is not None:
                    raise failure
                self.cpu_indices = packages
                self.open = []

            def begin_window(self, key, sync_execution):
                self.open.append(key)

            def end_window(self, key, sync_execution):
                self.open.remove(key)
                return SimpleNamespace(cpu_energy=cpu, dram_energy=dram)

        module = ModuleType("zeus.monitor")
        module.ZeusMonitor = ZeusMonitor
        monkeypatch.setitem(sys.modules, "zeus", ModuleType("zeus"))
        monkeypatch.setitem(sys.modules, "zeus.monitor", module)

    return install


def test_without_zeus_there_is_no_meter(monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus", None)
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    assert open_meter() is None


def test_without_counters_there_is_no_meter(zeus):
    zeus(packages=[])
    assert open_meter() is None


def test_without_permission_there_is_no_meter(zeus):
    zeus(packages=[0], failure=RuntimeError("Root privilege is required"))
    assert open_meter() is None


@pytest.mark.parametrize(
    ("cpu", "dram", "joules"),
    [
        ({0: 1.5, 1: 2.0}, {0: 0.25}, 3.75),
        ({0: 1.5}, None, 1.5),
        (None, None, None),
        ({0: 0.0}, {0: 1.0}, None),
        ({}, {}, None),
    ],
)
def test_joules_of_all_packages_or_none(zeus, cpu, dram, joules):
    zeus(packages=[0, 1], cpu=cpu, dram=dram)
    meter = open_meter()
    meter.begin()
    assert meter.end() == joules
