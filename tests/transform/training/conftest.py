"""What all training tests run in: runs of some milliseconds that wait for nothing."""

from __future__ import annotations

import gc

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Several threads mostly wait for each other on models so small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    gc.unfreeze()


@pytest.fixture(autouse=True)
def few_objects_to_collect():
    """Every run ends in a full garbage collection, which would look through all of torch."""
    gc.freeze()
