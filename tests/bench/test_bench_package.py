"""The package's front door: names are found on first use, unknown ones are refused."""

from __future__ import annotations

from importlib import import_module

import pytest

import bench


@pytest.mark.parametrize("name", bench.__all__)
def test_every_exported_name_is_found_at_its_home(name):
    found = getattr(bench, name)
    assert found is getattr(import_module(bench._HOMES[name]), name)
    assert found.__module__ == bench._HOMES[name]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        bench.nothing  # noqa: B018
