"""Slices of large tensors, in memory that is used again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scoring_nets import built, gated, population
from structure_nets import image

from passes.ising import slice_memory
from passes.ising.agreement import relative_difference
from passes.ising.compact_scoring import CompactScoring
from passes.ising.loop_scoring import LoopScoring
from passes.ising.slice_memory import SliceMemory


@pytest.fixture
def all_large(monkeypatch):
    monkeypatch.setattr(slice_memory, "_LARGE", 0)


@given(data=st.data())
def test_it_is_what_index_select_leaves(data):
    memories = SliceMemory(), SliceMemory()
    tensor = torch.rand(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    with pytest.MonkeyPatch.context() as patch:
        for number in range(3):
            dims = data.draw(st.permutations(range(tensor.dim())))
            cuts = [
                (dim, torch.tensor(sorted(data.draw(st.sets(st.integers(0, size - 1))))).long())
                for dim, size in ((dim, tensor.shape[dim]) for dim in dims)
            ][: data.draw(st.integers(0, tensor.dim()))]
            expected = tensor
            for dim, indices in cuts:
                expected = expected.index_select(dim, indices)
            for memory, large in zip(memories, (0, 10**9), strict=True):
                patch.setattr(slice_memory, "_LARGE", large)
                assert torch.equal(memory.select("one", tensor + number, cuts), expected + number)


@pytest.mark.usefixtures("all_large")
def test_memory_is_used_again_by_the_same_tensor_alone():
    memory, tensor = SliceMemory(), torch.arange(12.0).view(3, 4)
    cuts = [(0, torch.tensor([0, 2])), (1, torch.tensor([1, 2, 3]))]
    first = memory.select("one", tensor, cuts)
    other = memory.select("two", tensor + 1, cuts)
    again = memory.select("one", tensor + 2, cuts[:1])
    assert torch.equal(other, first.new_tensor([[2, 3, 4], [10, 11, 12]]))
    assert torch.equal(again, tensor[[0, 2]] + 2)
    assert first.untyped_storage().data_ptr() != other.untyped_storage().data_ptr()
    third = memory.select("one", tensor + 3, cuts)
    assert third.data_ptr() == first.data_ptr()
    assert torch.equal(third, first)  # overwritten
    assert memory.select("one", tensor, []) is tensor


def test_slices_of_small_tensors_are_new_ones():
    memory, tensor = SliceMemory(), torch.arange(12.0)
    first = memory.select("one", tensor, [(0, torch.tensor([1, 2]))])
    memory.select("one", tensor + 5, [(0, torch.tensor([1, 2]))])
    assert first.tolist() == [1, 2]


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize("name", ["Residual", "Grouped", "Tied", "Transposed"])
def test_candidates_are_the_same_in_memory_that_is_used_again(name):
    gates, _, call = gated(built(name), image(3))
    scoring, states = CompactScoring(gates), population(gates, 4)
    expected = LoopScoring(gates).outputs(states, call)
    for _ in range(2):
        assert relative_difference(scoring.outputs(states, call), expected) < 1e-12
    assert any(shell._memory._kept for shell in scoring._shells.values())
