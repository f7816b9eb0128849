"""Check the arguments of `compress` before any work is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from energy_model.errors import ArgumentError, StorageError
from passes.graph import Decision
from passes.inputs import Call, as_batch, as_call
from passes.reconstruct.config import Reconstruction
from transform.storage import CHECKPOINTS, FILES
from transform.training.config import TrainConfig
from transform.training.steps import length_of

TARGETS = ("onnxruntime-cpu",)


def require_target(target: Any) -> None:
    """Raise for a target that nothing is measured on."""
    if target not in TARGETS:
        raise ArgumentError(
            f"unknown target {target!r}", where="target", remedy=f"There is {TARGETS[0]!r}."
        )


def require_free(out: str | Path | None, training: bool = False) -> Path | None:
    """The output folder; it must hold nothing yet, but what a killed training run left there.

    Raises:
        StorageError: It exists and is not an empty folder.
    """
    if out is None:
        return None
    if not isinstance(out, str | Path):
        raise ArgumentError(f"{out!r} is no path", where="out", remedy="Pass a folder's name.")
    path = Path(out)
    if path.is_dir():
        found = {entry.name for entry in path.iterdir()}
        rest = {name for name in found if name not in FILES and not name.endswith(".partial")}
        if not found or (training and rest == {CHECKPOINTS}):
            return path
    if path.exists():
        raise StorageError(
            "the output folder exists already and is not empty",
            where=str(path),
            remedy="Choose another folder, or remove this one: nothing is overwritten.",
        )
    return path


def training_config(train: Any) -> TrainConfig | None:
    """Read the argument `train`: a configuration, a number of epochs, a dict, or `False`.

    Returns:
        The configuration; `None` when there is to be no training, or nothing is said (`None`).
    """
    if train is None or train is False:
        return None
    if train is True:
        return TrainConfig()
    if isinstance(train, TrainConfig):
        return train
    if isinstance(train, int):
        return TrainConfig(epochs=train)
    if isinstance(train, Mapping):
        return TrainConfig.from_dict(train)
    raise ArgumentError(
        f"{type(train).__name__} is no training configuration",
        where="train",
        remedy="Pass a TrainConfig, a number of epochs, or False for one shot.",
    )


def why_not_trained(model: nn.Module, data: Any, loss: Any) -> str:
    """Why `data` alone does not start training; empty when it does."""
    if data is None:
        return "no data"
    if isinstance(data, Iterator) or length_of(data) is None:
        return "the data can be read only once, or has no length"
    if not any(p.requires_grad for p in model.parameters()):
        return "every parameter is frozen"
    first = next(iter(data), None)
    if first is None:
        return "no data"
    targets = as_batch(model, first).targets
    if targets is None:
        return "the data has no labels"
    if loss is None and (not isinstance(targets, Tensor) or targets.is_floating_point()):
        return "the targets are no classes, and no loss was given"
    return ""


def reconstruction(
    asked: Any, model: nn.Module, data: Iterable[Any] | None, *, trained: bool
) -> tuple[Reconstruction | None, list[Decision]]:
    """Read the argument `reconstruct`, and tell why layers are reconstructed or not.

    Args:
        asked: `None`, a boolean, a mapping, or a `Reconstruction`.
        model: Tells which parts of a batch are inputs.
        data: Batches, or `None`.
        trained: The model will be trained.

    Raises:
        ArgumentError: It is asked for without data, or is none of these.
    """
    if asked is False or (asked is None and (data is None or trained)):
        return None, []
    if asked is None:
        if isinstance(data, Iterator):  # its first batch was looked at before
            why = "the data can be read only once; reconstruct=True does so, a list serves as well"
            return None, [Decision("", "layers are not reconstructed", why)]
        first = None if data is None else next(iter(data), None)
        if first is None or as_batch(model, first).targets is not None:
            return None, []
    elif data is None:
        raise ArgumentError(
            "reconstruction was asked for, and there is no data",
            where="reconstruct",
            remedy="Pass data=; labels are not needed.",
        )
    if isinstance(asked, Mapping):
        asked = Reconstruction.from_dict(asked)
    elif asked is None or asked is True:
        asked = Reconstruction()
    if not isinstance(asked, Reconstruction):
        raise ArgumentError(
            f"{type(asked).__name__} does not say how to reconstruct",
            where="reconstruct",
            remedy="Pass True, False, None or a Reconstruction.",
        )
    why = "asked for" if trained else "the data serves without labels; reconstruct=False for none"
    return asked, [Decision("", "layers are reconstructed", why)]


def require_seed(seed: Any) -> int:
    """The seed as an integer."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ArgumentError(f"{seed!r} is not a seed", where="seed", remedy="Pass an int from 0.")
    return seed


def find_device(model: nn.Module, device: str | torch.device | None) -> torch.device:
    """The given device, or the one that the model is on.

    Raises:
        ArgumentError: The device is unknown or not available.
    """
    first = next(chain(model.parameters(), model.buffers()), None)
    own = first.device if first is not None else torch.device("cpu")
    try:
        found = own if device is None else torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ArgumentError(
            f"{device!r} is not available: {str(error).splitlines()[0]}",
            where="device",
            remedy="Pass 'cpu', or a device that torch sees on this machine.",
        ) from error
    if "meta" in (own.type, found.type):
        raise ArgumentError(
            "a model on the meta device has no weights to compress",
            where="device",
            remedy="Build it on a real device; `analyze` works on meta as well.",
        )
    return found


def example_call(
    model: nn.Module, example_inputs: Any, data: Iterable[Any] | None
) -> tuple[Call, Iterable[Any] | None]:
    """Example inputs, from the argument or the first batch of `data`.

    Returns:
        The call, and `data` with its first batch still in it.

    Raises:
        ArgumentError: Neither is given, or `data` is empty.
    """
    if example_inputs is not None:
        return as_call(model, example_inputs), data
    if data is None:
        raise ArgumentError(
            "example inputs are needed to trace the model, and there is no data to take them from",
            where="example_inputs",
            remedy="Pass example_inputs=torch.randn(1, 3, 224, 224), or data=.",
        )
    if not isinstance(data, Iterable):
        raise ArgumentError(
            f"{type(data).__name__} is not iterable",
            where="data",
            remedy="Pass an iterable of batches: a DataLoader or a list.",
        )
    iterator: Iterator[Any] = iter(data)
    try:
        first = next(iterator)
    except StopIteration:
        raise ArgumentError("no batches", where="data", remedy="Pass at least one batch.") from None
    rest = chain([first], iterator) if iterator is data else data
    return as_batch(model, first).call, rest
