"""Hard cases of training: kills at bad moments, odd loaders, values that are not finite."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset
from training_runs import batches, digest, examples, plain, run

import transform
from energy_model.errors import CompressionError
from transform import ArgumentError, StorageError, TrainConfig, TrainingError
from transform.fingerprint import state_digest
from transform.training.checkpoint import Checkpoints

# Trainings that end badly: `make test-slow` runs them.
pytestmark = pytest.mark.slow

TRAIN = {"epochs": 5, "lr": 0.1}


class Stop(BaseException):
    """What a user who presses a key raises."""


def stopping(after):
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        if len(calls) > after:
            raise Stop
        return F.cross_entropy(outputs, targets)

    return loss


def stopped(out, after=7, **options):
    with pytest.raises(Stop):
        run(out=out, loss=stopping(after), **{"train": TRAIN} | options)


# resume


def test_resume_false_starts_anew(tmp_path):
    stopped(tmp_path / "out")
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        return F.cross_entropy(outputs, targets)

    result = run(out=tmp_path / "out", train=TRAIN, loss=loss, resume=False)
    assert len(calls) == 15
    assert state_digest(result.model) == digest(train=TRAIN)


def test_resume_false_also_where_the_checkpoints_are_of_another_run(tmp_path):
    stopped(tmp_path / "out")
    assert run(out=tmp_path / "out", train=TRAIN, seed=4, resume=False).certificate.holds


@pytest.mark.parametrize(
    "left",
    [
        (".model.onnx.a510b7bad18e.partial",),
        ("model.onnx",),
        ("model.onnx", "model.certificate.json", "weights.safetensors", "report.txt"),
        ("model.onnx", ".compressed.json.f3eb29a2504a.partial"),
    ],
)
def test_a_kill_while_the_result_is_written_can_be_resumed(tmp_path, left):
    out = tmp_path / "out"
    stopped(out)
    for name in left:
        (out / name).write_bytes(b"half")
    result = run(out=out, train=TRAIN)
    assert state_digest(result.model) == digest(train=TRAIN)
    assert state_digest(transform.load(out).model) == state_digest(result.model)
    assert not [p.name for p in out.iterdir() if p.name.startswith(".")]


def test_a_kill_after_the_index_and_before_the_checkpoints_go(tmp_path):
    out = tmp_path / "out"
    stopped(out)
    shutil.copytree(out / "checkpoints", tmp_path / "kept")
    run(out=out, train=TRAIN)
    shutil.copytree(tmp_path / "kept", out / "checkpoints")
    run(out=out, train=TRAIN)
    assert not (out / "checkpoints").exists()


def test_one_shot_does_not_remove_the_checkpoints_of_a_run(tmp_path):
    out = tmp_path / "out"
    stopped(out)
    with pytest.raises(StorageError):
        run(out=out, train=False)
    assert list(out.glob("checkpoints/epoch-*"))


def test_an_optimizer_given_as_a_function_does_not_change_the_run(tmp_path):
    """Its repr holds an address, so that another process is refused as another run."""

    def make():
        def optimizer(groups):
            return torch.optim.SGD(groups, lr=1.0)

        return optimizer

    first, second = make(), make()
    stopped(tmp_path / "out", train=TrainConfig(**TRAIN, optimizer=first))
    result = run(out=tmp_path / "out", train=TrainConfig(**TRAIN, optimizer=second))
    assert state_digest(result.model) == digest(train=TrainConfig(**TRAIN, optimizer=second))


def sampled():
    data = TensorDataset(*examples())
    sampler = RandomSampler(data, generator=torch.Generator().manual_seed(3))
    return DataLoader(data, batch_size=8, sampler=sampler)


def test_a_generator_of_the_sampler_goes_on(tmp_path):
    stopped(tmp_path / "out", data=sampled())
    result = run(out=tmp_path / "out", data=sampled(), train=TRAIN)
    assert state_digest(result.model) == digest(data=sampled(), train=TRAIN)


def test_another_teacher_is_another_run(tmp_path):
    train = TRAIN | {"distill": 0.5}
    stopped(tmp_path / "out", train=train, teacher=plain(seed=5))
    with pytest.raises(StorageError, match="another run"):
        run(out=tmp_path / "out", train=train, teacher=plain(seed=6))


STATE = {"epoch": 3, "step": 12, "weights": torch.ones(3)}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"value": 12', '"value": 13'),
        lambda text: text.replace('"epoch"', '"epoxh"'),
    ],
    ids=["number", "key"],
)
def test_damage_of_state_json_is_noticed(tmp_path, damage):
    kept = Checkpoints(tmp_path / "c", "run")
    kept.save(3, STATE)
    path = tmp_path / "c" / "epoch-000003" / "state.json"
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    with pytest.raises(StorageError):
        kept.load()


@pytest.mark.parametrize("state", [None, {}, {"value": 3}, {"tensor": []}, {"dict": [1]}, "gone"])
def test_a_state_of_another_shape_is_a_typed_error(tmp_path, state):
    kept = Checkpoints(tmp_path / "c", "run")
    kept.save(3, STATE)
    path = tmp_path / "c" / "epoch-000003" / "state.json"
    data = json.loads(path.read_text())
    data["state"] = state
    if state == "gone":
        del data["state"]
    path.write_text(json.dumps(data))
    with pytest.raises(StorageError):
        kept.load()


def test_a_folder_that_cannot_be_made_is_a_typed_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError):
        run(out=tmp_path / "file" / "out", train=TRAIN)


# what ends in the result


def test_a_metric_may_return_a_tensor(tmp_path):
    """As the functions of torchmetrics do."""

    def metric(outputs, targets):
        return (outputs.argmax(1) == targets).float().mean()

    result = run(valid=batches(), metric=metric, out=tmp_path / "out", train=TRAIN)
    assert type(result.metrics["after"]) is float
    assert transform.load(tmp_path / "out").metrics == result.metrics


def test_a_metric_that_is_not_a_number_is_a_typed_error_or_is_saved(tmp_path):
    def metric(outputs, targets):
        return math.nan

    try:
        run(valid=batches(), metric=metric, out=tmp_path / "out", train=TRAIN)
    except CompressionError:
        return
    transform.load(tmp_path / "out")


class Poison(torch.autograd.Function):
    """Finite forward, NaN backward."""

    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return x.sum()

    @staticmethod
    def backward(ctx, g):
        return torch.full(ctx.shape, math.nan)


class Shifted(nn.Module):
    """A bias of its own behind a frozen layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3).requires_grad_(False)
        self.shift = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.layer(x) + self.shift


def test_a_gradient_that_is_nan_in_the_last_step_is_noticed():
    with pytest.raises(TrainingError):
        run(
            Shifted(),
            [examples()],
            loss=lambda outputs, targets: Poison.apply(outputs),
            train={"epochs": 1},
        )


@pytest.mark.parametrize("lr", [1e-2, 1e30])
def test_weights_that_become_nan_in_training_are_a_training_error(lr):
    loss = (lambda outputs, targets: Poison.apply(outputs)) if lr < 1 else None
    with pytest.raises(TrainingError):
        run(train={"epochs": 3, "lr": lr}, loss=loss, method=transform.EnergyProjection(interval=1))


def test_mixed_precision_leaves_no_trace_on_the_model():
    assert "forward" not in vars(run(train={"epochs": 1, "amp": "bf16"}).model)


def test_an_accelerator_of_the_caller_lives_on():
    from accelerate import Accelerator

    own = Accelerator(cpu=True)
    run(train={"epochs": 1})
    assert own.device.type == "cpu"
    assert own.num_processes == 1


def test_a_late_nan_does_not_say_that_nothing_was_written(tmp_path):
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        return F.cross_entropy(outputs, targets) * (math.nan if len(calls) > 4 else 1)

    with pytest.raises(TrainingError) as caught:
        run(out=tmp_path / "out", loss=loss, train=TRAIN)
    assert (tmp_path / "out" / "checkpoints").exists()
    assert "Nothing was written" not in str(caught.value)


# typed errors


@pytest.mark.parametrize(
    "schedule", [{"a": 0.1}, {None: 0.1}, {0: "fast"}, {0: None}, {True: 0.1}], ids=str
)
def test_a_table_that_is_no_table_of_numbers(schedule):
    with pytest.raises(ArgumentError, match=r"TrainConfig\.schedule"):
        TrainConfig(schedule=schedule)


def test_a_frozen_model_is_a_typed_error():
    with pytest.raises(CompressionError):
        run(plain().requires_grad_(False), train=TRAIN)


def test_a_frozen_model_is_compressed_in_one_shot_when_nothing_is_said():
    result = run(plain().requires_grad_(False), train=None)
    assert result.certificate.holds


@pytest.mark.parametrize(
    "loss",
    [
        lambda outputs, targets: outputs,
        lambda outputs, targets: 1.0,
        lambda outputs, targets: outputs.detach().sum(),
        lambda outputs, targets: outputs.nonsense,
    ],
    ids=["vector", "float", "no gradient", "raises"],
)
def test_a_loss_that_is_none_is_a_typed_error(loss):
    with pytest.raises(CompressionError):
        run(loss=loss)


@pytest.mark.parametrize(
    "batch",
    [
        (examples(8)[0], torch.zeros(3, dtype=torch.int64)),
        (examples(8)[0], torch.zeros(8)),
        (examples(8)[0], torch.full((8,), 7)),
        (torch.randn(8, 5), torch.zeros(8, dtype=torch.int64)),
    ],
    ids=["count", "floats", "class out of range", "input shape"],
)
def test_a_batch_that_does_not_fit_is_a_typed_error(batch):
    with pytest.raises(CompressionError, match=r"data|batch"):
        run(data=[*batches(), batch])


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_a_last_batch_of_one_sample_is_a_typed_error(norm):
    model = nn.Sequential(nn.Linear(8, 4), norm(4), nn.Linear(4, 3))
    x, y = examples(9)
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    match = "data: a batch has size 1, and BatchNorm needs more than one value"
    with pytest.raises(TrainingError, match=match) as caught:
        run(model, loader)
    assert "drop_last=True" in caught.value.remedy
    run(model, DataLoader(TensorDataset(x, y), batch_size=8, drop_last=True))


def test_one_sample_is_enough_without_a_norm():
    x, y = examples(9)
    run(data=DataLoader(TensorDataset(x, y), batch_size=8))


def test_an_optimizer_that_is_none_is_a_typed_error():
    with pytest.raises(ArgumentError, match="optimizer"):
        run(train=TrainConfig(epochs=1, optimizer=lambda groups: None))


class Streamed(IterableDataset):
    """Samples without a length: the loader has `__len__`, and it raises."""

    def __iter__(self):
        yield from zip(*examples(), strict=True)


def test_a_loader_of_a_stream_has_no_length():
    with pytest.raises(ArgumentError, match="no length"):
        run(data=DataLoader(Streamed(), 8), train={"epochs": 1})


def test_a_loader_of_a_stream_is_one_shot_when_nothing_is_said():
    result = run(data=DataLoader(Streamed(), 8), train=None)
    assert any(d.what == "one shot" and "length" in d.why for d in result.decisions)


def test_a_loader_of_a_stream_is_trained_on_when_the_batches_are_counted():
    run(data=DataLoader(Streamed(), 8), train={"epochs": 2, "batches_per_epoch": 2})


def test_a_teacher_is_checked_even_where_it_is_not_used():
    with pytest.raises(ArgumentError, match="teacher"):
        run(teacher="nobody")


def test_plateau_without_a_metric_is_refused():
    """It would never fall."""
    with pytest.raises(ArgumentError, match="plateau"):
        run(train={"epochs": 2, "schedule": "plateau"})
