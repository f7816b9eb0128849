"""The samples that candidates are compared on."""

from __future__ import annotations

import torch
from torch import nn

from passes.inputs import Batch, as_call
from transform.labelled import Labelled

CPU = torch.device("cpu")


class Two(nn.Module):
    def forward(self, a, b):
        return a + b


def batches(labels, size=4):
    labels = torch.as_tensor(labels)
    x = torch.arange(len(labels)).float()[:, None]
    return [(x[i : i + size], labels[i : i + size]) for i in range(0, len(labels), size)]


def test_classes_take_turns():
    found = Labelled(batches([0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0]), nn.Identity(), CPU)(6)
    assert found.targets.tolist() == [0, 0, 0, 1, 1, 2]
    assert found.call.args[0][:, 0].tolist() == [0, 1, 2, 6, 7, 8]


def test_no_more_is_read_than_is_needed():
    read = []

    def data():
        for number, batch in enumerate(batches([0, 1] * 20)):
            read.append(number)
            yield batch

    class Data:
        def __iter__(self):
            return data()

    labelled = Labelled(Data(), nn.Identity(), CPU)
    first = labelled(2)
    assert read == [0, 1]  # four times as many samples as are asked for
    assert labelled(2) is first
    assert read == [0, 1]


def test_other_targets_keep_their_order():
    data = [(torch.randn(3, 2), torch.randn(3, 5)), (torch.randn(3, 2), torch.randn(3, 5))]
    found = Labelled(data, nn.Identity(), CPU)(4)
    assert torch.equal(found.targets, torch.cat([data[0][1], data[1][1]])[:4])


def test_samples_of_different_shapes_are_not_joined():
    data = [(torch.randn(3, 2), torch.arange(3)), (torch.randn(3, 4), torch.arange(3))]
    found = Labelled(data, nn.Identity(), CPU)(5)
    assert torch.equal(found.call.args[0], data[0][0])


def test_several_inputs_and_no_targets():
    data = [(torch.ones(2, 1), torch.zeros(2, 1), torch.tensor([1, 0]))] * 2
    found = Labelled(data, Two(), CPU)(4)
    assert [t.shape for t in found.call.tensors()] == [(4, 1), (4, 1)]
    assert found.targets.tolist() == [1, 0, 1, 0]
    assert Labelled([torch.ones(2, 1)], nn.Identity(), CPU)(2) is None
    assert Labelled([], nn.Identity(), CPU)(2) is None


def test_rows_of_a_batch_keep_what_has_no_rows():
    call = as_call(Two(), (torch.arange(6).view(3, 2), torch.tensor(7)))
    batch = Batch(call, {"class": torch.arange(3), "weight": torch.ones(2)})
    found = batch.rows(torch.tensor([2, 0]))
    assert found.call.args[0].tolist() == [[4, 5], [0, 1]]
    assert found.call.args[1].item() == 7
    assert found.targets["class"].tolist() == [2, 0]
    assert found.targets["weight"].shape == (2,)
