"""What a model is called with: examples, batches, one sample of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from energy_model.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one call of a model."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, model: Callable[..., Any]) -> Any:
        """Run `model` on these arguments."""
        return model(*self.args, **self.kwargs)

    def map(self, function: Callable[[Tensor], Tensor]) -> Call:
        """Apply `function` to every tensor."""
        args, kwargs = pytree.tree_map_only(Tensor, function, (self.args, dict(self.kwargs)))
        return Call(args, kwargs)

    def tensors(self) -> list[Tensor]:
        """Every tensor, in order."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    @property
    def batch_size(self) -> int | None:
        """Size of the first dimension of the first tensor that has one; `None` without any."""
        return next((t.shape[0] for t in self.tensors() if t.dim() > 0), None)

    def batched(self, tensor: Tensor) -> bool:
        """Whether a tensor's first dimension is the batch: its size is that of the first tensor."""
        return tensor.dim() > 0 and tensor.shape[0] == self.batch_size

    def rows(self, indices: Tensor) -> Call:
        """The call of some of its samples, by index, int64 `(n,)`."""
        return self.map(lambda t: t[indices.to(t.device)] if self.batched(t) else t)

    def fresh(self) -> Call:
        """The same call on copies: a model may change its inputs in place."""
        return self.map(torch.clone)

    def to(self, device: torch.device) -> Call:
        """Move every tensor to `device`."""
        return self.map(lambda t: t.to(device))


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch of data: the call, and the targets if there are any."""

    call: Call
    targets: Any = None

    def rows(self, indices: Tensor) -> Batch:
        """Some of its samples, by index, int64 `(n,)`."""
        targets = Call((self.targets,))
        size = self.call.batch_size

        def taken(tensor: Tensor) -> Tensor:
            if tensor.dim() == 0 or tensor.shape[0] != size:
                return tensor
            return tensor[indices.to(tensor.device)]

        return Batch(self.call.rows(indices), targets.map(taken).args[0])

    @property
    def classes(self) -> Tensor | None:
        """The class of each sample, int64 `(n,)`; `None` where the targets are something else."""
        size, targets = self.call.batch_size or 1, self.targets
        if not isinstance(targets, Tensor) or targets.shape != (size,):
            return None
        return None if targets.is_floating_point() else targets.cpu().long()

    def in_turns(self, count: int) -> Tensor:
        """Up to `count` samples, by index in their order, int64: of classes as many of each.

        The first of every class, then the second, and so on; without classes the first ones.
        """
        size, classes = self.call.batch_size or 1, self.classes
        if classes is None:
            return torch.arange(min(count, size))
        order = torch.sort(classes, stable=True).indices
        sizes = torch.unique_consecutive(classes[order], return_counts=True)[1].tolist()
        turns = torch.empty_like(order)
        turns[order] = torch.cat([torch.arange(own) for own in sizes])
        return torch.sort(turns, stable=True).indices[:count].sort().values


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    forward = inspect.signature(model.forward)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in forward.parameters.values() if p.kind in kinds]


def as_call(model: nn.Module, inputs: Any) -> Call:
    """Read example inputs: a tensor, a tuple of arguments, or a dict.

    A dict whose keys are all parameters of `model.forward` is passed by keyword; any other dict is
    the first argument.

    Raises:
        ArgumentError: `inputs` holds no tensor.
    """
    if isinstance(inputs, Call):
        return inputs
    if isinstance(inputs, Mapping):
        names = {p.name for p in _parameters(model)}
        keyword = bool(inputs) and all(key in names for key in inputs)
        call = Call(kwargs=dict(inputs)) if keyword else Call((dict(inputs),))
    elif isinstance(inputs, tuple | list):
        call = Call(tuple(inputs))
    else:
        call = Call((inputs,))
    if not call.tensors():
        raise ArgumentError(
            f"no tensor in {type(inputs).__name__}",
            where="example_inputs",
            remedy="Pass a tensor, a tuple of the model's arguments, or a dict by argument name.",
        )
    return call


def as_batch(model: nn.Module, item: Any) -> Batch:
    """Read one item of a data iterable.

    A tensor is the only input. A dict holds `inputs` and, if there are any, `targets`. A tuple is
    `(inputs, targets)`: `inputs` may itself be a tuple or dict; a model with k required arguments
    takes the first k entries, and what follows is the target.
    """
    if isinstance(item, Mapping):
        if "inputs" not in item:
            raise ArgumentError(
                f"a batch is a dict with the keys {sorted(item)}",
                where="data",
                remedy="Give it the key 'inputs' (and 'targets' if there are any).",
            )
        return Batch(as_call(model, item["inputs"]), item.get("targets"))
    if not isinstance(item, tuple | list):
        return Batch(as_call(model, item))
    if not item:
        raise ArgumentError("a batch is empty", where="data", remedy="Yield at least one tensor.")
    if isinstance(item[0], tuple | list | Mapping):
        return Batch(as_call(model, item[0]), item[1] if len(item) > 1 else None)
    required = sum(p.default is inspect.Parameter.empty for p in _parameters(model))
    taken = min(max(required, 1), len(item))
    rest = item[taken:]
    return Batch(as_call(model, tuple(item[:taken])), rest[0] if rest else None)


def one_sample(call: Call) -> Call:
    """The same call at batch size 1, its floating values replaced by fixed random numbers.

    Costs are per sample and do not depend on values. Integers keep theirs: indices and lengths
    must stay valid.
    """
    generator = torch.Generator().manual_seed(0)

    def sample(tensor: Tensor) -> Tensor:
        one = (tensor[:1] if call.batched(tensor) else tensor).detach()
        if not one.is_floating_point() or one.device.type == "meta":
            return one.clone()  # a model may change its inputs in place
        values = torch.randn(one.shape, generator=generator, dtype=torch.float32)
        return values.to(device=one.device, dtype=one.dtype)

    return call.map(sample)
