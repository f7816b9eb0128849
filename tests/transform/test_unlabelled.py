"""Unlabelled batches are the same every time they are asked for."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from transform.unlabelled import Unlabelled


def batches(count: int) -> list[torch.Tensor]:
    return [torch.full((2, 3), float(number)) for number in range(count)]


def values(calls: Iterator[object]) -> list[float]:
    return [float(call.args[0][0, 0]) for call in calls]  # type: ignore[attr-defined]


def read(data: object) -> Unlabelled:
    return Unlabelled(data, nn.Linear(3, 2), torch.device("cpu"))  # type: ignore[arg-type]


def test_what_can_be_read_only_once_is_read_once() -> None:
    source = read(iter(batches(5)))
    assert values(source(2)) == [0, 1]
    assert values(source(4)) == [0, 1, 2, 3]
    assert values(source(9)) == [0, 1, 2, 3, 4]
    assert values(source(9)) == [0, 1, 2, 3, 4]


def test_data_that_is_shuffled_anew_gives_the_same_batches() -> None:
    class Shuffled:
        reads = 0

        def __iter__(self) -> Iterator[torch.Tensor]:
            self.reads += 1
            return iter(batches(5)[:: -1 if self.reads > 1 else 1])

    data = Shuffled()
    source = read(data)
    assert values(source(3)) == values(source(3)) == [0, 1, 2]
    assert data.reads == 1


def test_targets_are_left_out() -> None:
    source = read([(x, torch.zeros(2)) for x in batches(2)])
    assert [len(call.args) for call in source(2)] == [1, 1]


def test_no_more_is_read_than_asked_for() -> None:
    taken: list[int] = []

    def data() -> Iterator[torch.Tensor]:
        for number, batch in enumerate(batches(5)):
            taken.append(number)
            yield batch

    list(read(data())(2))
    assert taken == [0, 1]
