"""`transform.sensitivity` refuses what it cannot measure, and says why."""

from __future__ import annotations

import pytest
import torch
from sensitivity_nets import EYE, TRUTH, conv, line
from torch import nn
from torch.nn import functional as F
from transform_nets import SmallConv

import transform
from energy_model.errors import ArgumentError, HardwareError, PreconditionError, TraceError


@pytest.mark.spread(10)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None}, "data: there is no data"),
        ({"data": 3}, "data: int is no iterable of batches"),
        ({"data": torch.zeros(2, 2, 8, 8)}, "data: Tensor is no iterable of batches"),
        ({"data": {"inputs": torch.zeros(2, 2, 8, 8)}}, "data: dict is no iterable"),
        ({"data": []}, "data: no batches"),
        ({"data": iter(())}, "data: no batches"),
        ({"sparsity": 0}, "sparsity: 0 is no share"),
        ({"sparsity": 1.5}, "sparsity: 1.5 is no share"),
        ({"sparsity": (0.5, -0.1)}, "sparsity: -0.1 is no share"),
        ({"sparsity": float("nan")}, "sparsity: nan is no share"),
        ({"sparsity": True}, "sparsity: True is no share"),
        ({"sparsity": "0.5"}, "sparsity: '0.5' is no share"),
        ({"sparsity": None}, "sparsity: None is no share"),
        ({"sparsity": ()}, "sparsity: no sparsity"),
        ({"layers": "none.*"}, r"layers: 'none.\*' matches no layer"),
        ({"layers": {"none": False}}, "layers: 'none' matches no layer"),
        ({"layers": {"*": False}}, "no layer is left"),
        ({"layers": []}, "no layer is left"),
        ({"layers": 3}, "layers: int selects no layers"),
        ({"batches": 0}, "batches: 0 is no number"),
        ({"batches": True}, "batches: True is no number"),
        ({"loss": "mse"}, "loss: str is no loss"),
        ({"metric": 3}, "metric: int is no metric"),
        ({"loss": lambda o, t: o.sum() * float("nan")}, "loss: the loss is nan"),
        ({"metric": lambda o, t: float("inf")}, "metric: the metric is inf"),
        ({"loss": lambda o, t: o}, "data: the model, the loss or the metric fails"),
        ({"device": "nowhere"}, "device: 'nowhere' is not available"),
        ({"progress": "loud"}, "progress: unknown mode"),
    ],
)
def test_bad_arguments(change, message):
    model, data = conv()
    arguments = {"data": data, **change}
    with pytest.raises(ArgumentError, match=message):
        transform.sensitivity(model, **arguments)


@pytest.mark.parametrize(
    ("batches", "extra", "message"),
    [
        ([(EYE, TRUTH)], {}, "loss: the targets are no classes"),
        ([EYE], {"loss": F.mse_loss}, "loss: a loss was given, and the batches have no targets"),
        ([EYE], {"metric": F.mse_loss}, "metric: a metric was given"),
        ([(EYE, TRUTH), EYE], {"loss": F.mse_loss}, "some batches have targets"),
        ([torch.zeros(2, 4)], {}, "outputs are all zero"),
        ([EYE, torch.zeros(2, 3)], {}, "the metric fails on a batch: RuntimeError"),
        ([EYE * torch.nan], {}, "norm of the model's outputs is nan"),
    ],
)
def test_bad_data(batches, extra, message):
    with pytest.raises(ArgumentError, match=message):
        transform.sensitivity(line(1, -2, 3, 4), batches, **extra)


def test_a_loss_that_explodes_names_the_layer():
    def inverse(outputs, targets):
        return (1 / outputs.abs().max()).mean()

    with pytest.raises(ArgumentError, match="the loss is inf once the smallest weights of '0'"):
        transform.sensitivity(line(1, -2, 3, 4), [(EYE, TRUTH)], loss=inverse, sparsity=1)


class Counting(nn.Module):
    """As many outputs as there are weights."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x)[:, : int((self.layer.weight != 0).any(1).sum())]


def test_outputs_that_change_their_shape_are_refused():
    model = Counting()
    with pytest.raises(ArgumentError, match="outputs change their shape when weights of 'layer'"):
        transform.sensitivity(model, [EYE], sparsity=1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value):
    model, data = conv()
    model.head.weight.data[0, 0] = value
    with pytest.raises(PreconditionError, match=r"head: 1 of 1920 weights"):
        transform.sensitivity(model, data)


def test_models_without_layers_to_prune():
    with pytest.raises(ArgumentError, match=r"not a torch\.nn\.Module"):
        transform.sensitivity(SmallConv, [EYE])
    with pytest.raises(PreconditionError, match="no weighted layer"):
        transform.sensitivity(nn.Sequential(nn.LayerNorm(4)), [EYE])
    computed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
    with pytest.raises(PreconditionError, match="computed in forward"):
        transform.sensitivity(computed, [EYE])
    with pytest.raises(TraceError, match="fails on the example inputs"):
        transform.sensitivity(line(1, 2), [EYE])
    with pytest.raises(HardwareError):
        transform.sensitivity(line(1, 2, 3, 4), [EYE], hardware="none")
