"""Mean gradients: equal to one backward pass over all samples, and nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from energy_model.errors import PreconditionError
from transform.fingerprint import state_digest
from transform.gradients import Gradients

CPU = torch.device("cpu")


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)
        ).train()


def batches(count=3, size=4):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 4, generator=generator), torch.randint(3, (size,), generator=generator))
        for _ in range(count)
    ]


def test_the_mean_over_equal_batches_is_the_gradient_of_all_samples():
    model, data = net(), batches()
    found = Gradients(data, None, CPU)(model, 3)
    model.eval()
    x, y = torch.cat([b[0] for b in data]), torch.cat([b[1] for b in data])
    nn.functional.cross_entropy(model(x), y).backward()
    assert list(found) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-7)


def test_only_so_many_batches_are_read():
    data = batches()
    first = Gradients(data, None, CPU)(net(), 1)
    same = Gradients(data[:1], None, CPU)(net(), 5)
    for name, value in first.items():
        assert torch.equal(value, same[name])


def test_nothing_is_left_behind():
    model = net()
    model[0].weight.requires_grad_(False)
    digest, state = state_digest(model), torch.get_rng_state()
    found = Gradients(batches(), None, CPU)(model, 2)
    assert state_digest(model) == digest
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and model[1].training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model[0].weight.requires_grad
    assert found["0.weight"].abs().sum() > 0


def test_the_users_loss_counts():
    data = batches(1)
    plain = Gradients(data, None, CPU)(net(), 1)
    double = Gradients(data, lambda o, t: 2 * nn.functional.cross_entropy(o, t), CPU)(net(), 1)
    torch.testing.assert_close(double["4.weight"], 2 * plain["4.weight"])


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ([], "no batches"),
        ([torch.zeros(2, 4)], "no targets"),
        ([(torch.full((2, 4), float("nan")), torch.zeros(2, dtype=torch.long))], "loss is nan"),
    ],
)
def test_bad_data(data, match):
    with pytest.raises(PreconditionError, match=match):
        Gradients(data, None, CPU)(net(), 2)
