"""Candidates really cut: the slices that a state leaves, and one small forward."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from passes.inputs import Call
from passes.ising.scoring import Scoring
from passes.ising.sliced_shell import SlicedShell
from passes.rewrite.layer_numbers import matching_inputs
from passes.rewrite.live_gates import LiveGates


class CompactScoring(Scoring):
    """A forward of the size of what stays, for each state.

    With running statistics, batch norms are folded into the layers before them, once for all
    states. On a CPU images are given with channels last, where its kernels take any number of
    channels without rearranging them; models that rely on the order in memory get it as it was.

    Args:
        gates: Those of the model, which is to keep its structure.
    """

    name: ClassVar[str] = "compact"

    def __init__(self, gates: LiveGates) -> None:
        super().__init__(gates)
        self._shells: dict[bool, SlicedShell] = {}
        self._channels_last = True

    def _outputs(self, population: Tensor, call: Call, norms: str) -> list[Any]:
        if not self._channels_last or self.gates.device.type != "cpu":
            return self._each(population, call, norms)
        try:
            return self._each(population, call.map(_channels_last), norms)
        except RuntimeError:  # `view` may refuse; what else is wrong is raised again
            self._channels_last = False
            return self._each(population, call, norms)

    def _each(self, population: Tensor, call: Call, norms: str) -> list[Any]:
        fold = norms == "running"
        if fold not in self._shells:
            self._shells[fold] = SlicedShell(self.gates, fold_norms=fold)
        shell = self._shells[fold]
        found = []
        shell.refresh()
        try:
            with self._normalising(norms), matching_inputs(shell.module):
                for bits in population:
                    shell.load(bits)
                    found.append(self._run(shell.module, call))
        finally:
            shell.release()
        return found


def _channels_last(tensor: Tensor) -> Tensor:
    if tensor.dim() == 4 and tensor.dtype == torch.float32:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor
