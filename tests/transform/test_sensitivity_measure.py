"""Zeroing weights for a while, and the default metric."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transform.evaluate import evaluate
from transform.sensitivity_measure import top1, zeroed

VALUES = st.sampled_from([0.0, -0.0, 1e-40, 0.5, -0.5, 2.0, -3.0])


def bits(tensor):
    return tensor.contiguous().view(torch.int32).clone()


@given(st.lists(VALUES, min_size=1, max_size=24), st.data())
def test_the_smallest_go_and_come_back(values, data):
    weight = torch.tensor(values)
    count = data.draw(st.integers(0, len(values)))
    before = bits(weight)
    order = weight.abs().argsort(stable=True)
    with zeroed(weight, count) as removed:
        now = weight.clone()
    assert torch.equal(bits(weight), before)
    assert removed == int((weight[order[:count]] != 0).sum())
    assert int((now != weight).sum()) == removed
    # What went is never larger than what stayed.
    gone = weight[(now == 0) & (weight != 0)].abs()
    kept = now[now != 0].abs()
    assert not len(gone) or not len(kept) or gone.max() <= kept.min()


def test_of_equal_weights_the_first_stay():
    weight = torch.tensor([1.0, -1.0, 1.0, -1.0, 3.0])
    with zeroed(weight, 2):
        assert weight.tolist() == [1, -1, 0, 0, 3]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_type(kind):
    weight = torch.tensor([1.0, -2.0, 0.25, 4.0], dtype=kind)
    with zeroed(weight, 2) as removed:
        assert weight.tolist() == [0, -2, 0, 4]
    assert (removed, weight.tolist()) == (2, [1, -2, 0.25, 4])


def test_weights_come_back_after_an_error_and_out_of_any_layout():
    whole = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    weight = whole.to(memory_format=torch.channels_last)
    part = whole.reshape(-1)[12:24]
    for view in (weight, part):
        before = view.clone()
        with pytest.raises(KeyboardInterrupt), zeroed(view, 6):
            assert int((view == 0).sum()) == 6
            raise KeyboardInterrupt
        assert torch.equal(view, before)


def test_a_part_of_a_parameter_leaves_the_rest_alone():
    whole = torch.arange(1.0, 13.0)
    with zeroed(whole[4:8], 2):
        assert whole.tolist() == [1, 2, 3, 4, 0, 0, 7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize(
    ("outputs", "targets", "expected"),
    [
        (torch.eye(3), torch.tensor([0, 1, 0]), 2),
        ({"scores": torch.eye(3)}, torch.tensor([0, 1, 2]), 3),
        ((torch.eye(3), None), torch.tensor([2, 2, 2]), 1),
        (torch.eye(3), torch.zeros(3), None),
        (torch.zeros(3, 2, 4), torch.zeros(3, 4, dtype=torch.int64), None),
        (torch.eye(3), "none", None),
    ],
)
def test_top1_is_that_of_evaluate(outputs, targets, expected):
    assert top1(outputs, targets) == expected
    if isinstance(targets, torch.Tensor):

        class Fixed(torch.nn.Module):
            def forward(self, x):
                return outputs

        share = evaluate(Fixed(), [(torch.zeros(3, 1), targets)], torch.device("cpu"))
        assert share == (None if expected is None else expected / 3)
