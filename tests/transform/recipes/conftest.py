"""What all tests of recipes share."""

from __future__ import annotations

import functools
from importlib.metadata import entry_points

import pytest

from passes.methods import registry

_found = functools.cache(entry_points)


@pytest.fixture(autouse=True)
def entry_points_read_once(monkeypatch):
    """Or every cell of every matrix reads the metadata of all installed packages."""
    monkeypatch.setattr(registry, "entry_points", _found)
