"""Every form in which examples and data may come."""

from __future__ import annotations

import pytest
import torch
from transform_nets import DictInput, SmallConv, TwoInputs, made

import transform
from transform.arguments import example_call
from transform.fingerprint import state_digest

TARGETS = torch.tensor([0, 1, 2])


def compressed(model, data=None, **options):
    """Digest of a one-shot result: of the data only the first batch is looked at."""
    options |= {"train": False, "reconstruct": False}
    result = transform.compress(model, "nonzeros<=50%", data, **options)
    return state_digest(result.model)


def test_a_tensor_is_one_batch():
    model, x = made(SmallConv)
    assert compressed(model, x) == compressed(model, [x])


@pytest.mark.slow
def test_data_of_one_input():
    model, x = made(SmallConv)
    expected = compressed(model, example_inputs=x)
    labels = torch.tensor([0, 1])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=2)
    for data in (
        [x],
        [(x, labels)],
        [[x, labels]],
        [(x,)],
        [{"inputs": x}],
        [{"inputs": x, "targets": labels}],
        ((x, labels),),
        loader,
    ):
        assert compressed(model, data) == expected


@pytest.mark.slow
def test_data_of_several_inputs():
    model, (x, y) = made(TwoInputs)
    expected = compressed(model, example_inputs=(x, y))
    for data in (
        [(x, y)],
        [(x, y, TARGETS)],
        [((x, y), TARGETS)],
        [({"x": x, "y": y}, TARGETS)],
        [{"inputs": (x, y)}],
        [{"inputs": {"y": y, "x": x}, "targets": TARGETS}],
    ):
        assert compressed(model, data) == expected
    assert compressed(model, example_inputs={"x": x, "y": y}) == expected


def test_a_dict_may_be_the_one_argument():
    model, batch = made(DictInput)
    expected = compressed(model, example_inputs=batch)
    assert compressed(model, [{"inputs": batch}]) == expected
    assert compressed(model, [(batch, TARGETS)]) == expected


@pytest.mark.spread(1)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_costs_and_kept_weights_do_not_depend_on_the_examples_batch_or_values(size):
    model, _ = made(SmallConv)
    result = transform.compress(model, "energy<=50%", example_inputs=torch.ones(size, 2, 8, 8))
    other = transform.compress(model, "energy<=50%", example_inputs=torch.randn(3, 2, 8, 8))
    assert result.costs == other.costs
    assert state_digest(result.model) == state_digest(other.model)


def test_the_first_batch_of_a_generator_is_not_lost():
    model, x = made(SmallConv)
    batches = [x, x + 1, x + 2]
    for data in (iter(batches), (batch for batch in batches)):
        call, rest = example_call(model, None, data)
        assert call.args[0] is x
        assert [batch is other for batch, other in zip(rest, batches, strict=True)] == [True] * 3
    call, rest = example_call(model, None, batches)
    assert rest is batches
    given = torch.zeros(1, 2, 8, 8)
    call, rest = example_call(model, given, iter(batches))
    assert call.args[0] is given
    assert len(list(rest)) == 3


def test_validation_data_may_be_a_generator():
    model, x = made(SmallConv)
    labels = model.eval()(x).argmax(1)
    result = transform.compress(
        model,
        "energy<=100%",
        example_inputs=x,
        valid=({"inputs": x, "targets": labels} for _ in "ab"),
    )
    assert result.metrics == {"before": 1.0, "after": 1.0}


def test_the_first_output_of_several_is_scored():
    model, (x, y) = made(TwoInputs)
    labels = model(x, y)["scores"].argmax(1)
    result = transform.compress(
        model, "energy<=100%", example_inputs=(x, y), valid=[(x, y, labels), ((x, y), labels)]
    )
    assert result.metrics["before"] == 1.0
