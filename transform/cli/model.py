"""The model and its example inputs as the command line names them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from energy_model.errors import ArgumentError
from transform.cli.objects import find_object, run_user_code, user_code

DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
}


def load_model(name: str, weights: Path | None = None, seed: int = 0) -> nn.Module:
    """Build the model that `package.module:callable` names.

    Args:
        name: A function without arguments that returns a module, or a module itself.
        weights: Its weights: a `.safetensors` file, or what `torch.save(model.state_dict())` wrote.
        seed: Seed of the random weights that it starts with; the global state is left alone.

    Raises:
        ArgumentError: There is no such model, it cannot be built, or the weights do not fit.
    """
    gpus = range(torch.cuda.device_count())
    with user_code(), torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        found = find_object(name, "MODEL")
        # Again, or the weights would depend on what the import drew, and imports happen once.
        torch.manual_seed(seed)
        # A module is callable too, but calling it is not how to make one.
        model = found if isinstance(found, nn.Module) else run_user_code(found, name, "MODEL")
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"{name!r} gives {type(model).__name__}, not a torch.nn.Module",
            where="MODEL",
            remedy="Name a function that returns the model.",
        )
    if weights is not None:
        _load_weights(model, weights)
    return model


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        model.load_state_dict(_state(path))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise ArgumentError(
            f"the weights do not fit {type(model).__name__}: {' '.join(lines)[:300].rstrip('. ')}",
            where=str(path),
            remedy="Give the state dict of this very model.",
        ) from error


def _state(path: Path) -> Mapping[str, Tensor]:
    try:
        state = _read(path)
    except Exception as error:
        # torch and safetensors raise errors of many unrelated classes on a damaged file.
        reason = getattr(error, "strerror", None) or re.split(r"[.\n]", f"{error}", maxsplit=1)[0]
        raise ArgumentError(
            f"the weights cannot be read ({type(error).__name__}: {reason})",
            where=str(path),
            remedy="Give a .safetensors file, an .npz file of arrays, or a .pt file of "
            "torch.save(model.state_dict()).",
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        held = f"the keys {sorted(map(str, state))[:6]}" if isinstance(state, Mapping) else ""
        raise ArgumentError(
            f"this is no state dict: it holds {held or type(state).__name__}",
            where=str(path),
            remedy="Save it with torch.save(model.state_dict(), path).",
        )
    return state


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return torch.load(path, map_location="cpu", weights_only=True)


def example_inputs(specs: Sequence[str]) -> tuple[Tensor, ...]:
    """Tensors out of `1,3,224,224` or `1,128:int64`, one per argument of the model.

    Returns:
        Standard normal floats, always the same; zeros where the type is no float, so that indices
        are valid whatever the size of the table.

    Raises:
        ArgumentError: A shape or a type cannot be read, or does not fit into memory.
    """
    generator = torch.Generator().manual_seed(0)
    return tuple(_example(spec, generator) for spec in specs)


def _example(spec: str, generator: torch.Generator) -> Tensor:
    sizes, _, kind = spec.partition(":")
    shape, dtype = parse_shape(sizes, "--input"), DTYPES.get(kind or "float32")
    if dtype is None:
        raise ArgumentError(
            f"unknown type {kind!r}", where="--input", remedy=f"One of {', '.join(DTYPES)}."
        )
    try:
        if dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(dtype)
        return torch.zeros(shape, dtype=dtype)
    except (RuntimeError, MemoryError) as error:
        raise ArgumentError(
            f"{math.prod(shape):,} elements do not fit into memory",
            where="--input",
            remedy="A batch of 1 is enough: costs are per sample.",
        ) from error


def parse_shape(text: str, where: str) -> tuple[int, ...]:
    """Read `1,3,224,224` or `1x3x224x224`.

    Raises:
        ArgumentError: Not whole numbers from 1.
    """
    parts = [part.strip() for part in re.split("[,x]", text)]
    if not all(re.fullmatch(r"0*[1-9]\d{0,11}", part) for part in parts):
        raise ArgumentError(
            f"{text!r} is not a shape",
            where=where,
            remedy="Write sizes from 1 with commas, the batch first: 1,3,224,224.",
        )
    return tuple(map(int, parts))
