"""What a flip of each node would change, to first order, from one backward pass.

With a gate g_p on the channels of node p, the loss changes by about `-g_p dE/dg_p` if the node is
dropped (P. Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, section
3.2), and by `dE/dg_p` if it comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from energy_model.errors import ArgumentError, PreconditionError
from passes.inputs import Call
from passes.ising.batch_statistics import BatchStatistics
from passes.ising.scoring import NORMS, seed_alike
from passes.isolation import evaluating, untouched
from passes.rewrite.live_gates import LiveGates


def gate_gradients(
    gates: LiveGates,
    bits: Tensor,
    call: Call,
    targets: Any,
    loss: Callable[[Any, Any], Tensor],
    norms: str = "running",
) -> Tensor:
    """Gradient of a loss by the gate of every node, which is 1 if it is kept and 0 if not.

    The model runs in evaluation mode; nothing of it changes, gradients of parameters included.

    Args:
        gates: Those of the model.
        bits: The state: bool `(nodes,)`.
        call: The samples.
        targets: Given to the loss.
        loss: A function of (outputs, targets) that returns one number, such as an energy.
        norms: See `Scoring.outputs`.

    Returns:
        Float64 `(nodes,)`, on the CPU.

    Raises:
        ArgumentError: The state does not fit, another word for `norms`, or the loss returns
            something else than one number that depends on the gates.
        PreconditionError: The loss or a gradient is not finite.
    """
    if norms not in NORMS:
        raise ArgumentError(f"{norms!r} is none of {NORMS}", where="norms")
    factors = gates.rows(bits.unsqueeze(0))[0].double().requires_grad_()
    own = BatchStatistics(gates.context) if norms == "batch" else nullcontext()
    call = call.to(gates.device).fresh()
    with untouched(gates.module), evaluating(gates.module), torch.enable_grad():
        seed_alike(gates.device)
        with gates.acting(factors), own:
            outputs = call(gates.module)
        # Apart, as a loss may have a network with batch norms of its own.
        value = loss(outputs, targets)
        _check(value)
        (gradient,) = torch.autograd.grad(value.reshape(()), factors)
    found = gradient[:-1].cpu()
    if not bool(found.isfinite().all()):
        raise PreconditionError(
            "the gradient of a gate is not finite",
            where="gate gradients",
            remedy="Look for NaN or infinite weights or activations.",
        )
    return found


def flip_changes(gradient: Tensor, bits: Tensor) -> Tensor:
    """The first-order change of the loss if single nodes are flipped, float64 `(nodes,)`.

    Args:
        gradient: By the gates, `(nodes,)`.
        bits: The state where it was taken: bool `(nodes,)`.
    """
    return torch.where(bits, -gradient, gradient)


def _check(value: Any) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise ArgumentError(
            "the loss is not one number that depends on the outputs",
            where="loss",
            remedy="Return a tensor with one element, computed from the outputs.",
        )
    if not bool(value.isfinite()):
        raise PreconditionError(
            "the loss is not finite",
            where="loss",
            remedy="Look for NaN or infinite outputs, or for a logarithm of what is not positive.",
        )
