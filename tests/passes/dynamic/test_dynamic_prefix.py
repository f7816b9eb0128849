from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.dynamic.prefix import affordable

SITES = st.lists(
    st.tuples(
        st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0]), max_size=15),
        st.sampled_from([1, 2, 3, 9, 4608]),
    ),
    max_size=5,
)


@settings(max_examples=50)
@given(sites=SITES, room=st.integers(0, 10_000))
def test_affordable_takes_in_order_whatever_still_fits(sites, room):
    cells = sorted((v, i, j) for i, (values, _) in enumerate(sites) for j, v in enumerate(values))
    expected = [[False] * len(values) for values, _ in sites]
    left = room
    for _, i, j in cells:
        if sites[i][1] <= left:
            expected[i][j] = True
            left -= sites[i][1]
    found = affordable([torch.tensor(v) for v, _ in sites], [b for _, b in sites], room)
    assert [f.tolist() for f in found] == expected


def test_the_room_may_be_nothing_everything_or_between():
    values, blocks = [torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.5, 4.0])], [9, 1]
    assert not any(f.any() for f in affordable(values, blocks, 0))
    assert all(f.all() for f in affordable(values, blocks, 21))
    # 0.5 (1), then 1.0 (9) does not fit and is passed over, then 2.0 (1) and 4.0 (1).
    found = affordable(values, blocks, 9)
    assert [f.tolist() for f in found] == [[False, False], [True, True, True]]


def test_a_later_cell_that_fills_the_room_exactly_is_taken():
    values = [torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([2.0, 3.0])]
    found = affordable(values, [9, 1, 3], 4)
    assert [f.tolist() for f in found] == [[False], [True], [True, False]]
