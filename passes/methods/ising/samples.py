"""The samples that candidates are compared on."""

from __future__ import annotations

import math

import torch

from energy_model.errors import PreconditionError
from passes.inputs import Batch
from passes.methods.base import Run
from passes.methods.ising.candidates import rows_of
from passes.methods.ising.config import Ising

# With fewer, statistics of batch norms and the order of candidates would be mostly chance.
_LEAST_SCORED = 16


def scored_rows(batch: Batch | None, share: float, *, classes: bool) -> Batch | None:
    """Some samples of a batch, where classes count as many of each as there are.

    Args:
        batch: What was trained on last.
        share: Of its samples; 16 at least are taken, as far as there are so many.
        classes: Candidates are compared by class.

    Returns:
        In their order; `None` where all are of one class, or there is no batch.
    """
    if batch is None:
        return None
    size = batch.call.batch_size or 1
    count = min(size, max(_LEAST_SCORED, math.ceil(share * size)))
    known = batch.classes if classes else None
    if known is not None and bool((known == known[0]).all()):
        return None
    return batch.rows(batch.in_turns(count) if classes else torch.arange(count))


def fixed_samples(config: Ising, run: Run) -> Batch | None:
    """The samples of a search on weights as they are; `None` where candidates are not run."""
    if not config.runs_candidates:
        return None
    if run.labelled is not None and (batch := run.labelled(config.score_samples)) is not None:
        return batch
    assert run.batches is not None
    return Batch(rows_of(next(run.batches(1)), config.score_samples))


def require_samples(config: Ising, run: Run) -> None:
    """Raise unless there is what energy and importance are made of.

    Raises:
        PreconditionError: They need data or labels, and there are none.
    """
    what, remedy = "", "Pass data= with labels, or "
    labels = run.labelled is not None and run.labelled(2) is not None
    if config.needs_labels and not labels:
        what = f"the energy {config.energy_name!r} compares candidates on labelled samples"
        remedy += "Ising(energy='distill') with data, or Ising(energy='ising') without."
    elif config.runs_candidates and run.batches is None:
        what = f"the energy {config.energy_name!r} compares candidates on samples"
        remedy = "Pass data=, or Ising(energy='ising')."
    elif config.importance == "taylor" and not labels:
        what = "the importance 'taylor' is made of gradients of the loss on labelled samples"
        remedy += "Ising(importance='l2')."
    if what:
        raise PreconditionError(
            f"{what}, and there are none", where="method 'ising'", remedy=remedy
        )
