"""Skip connections: which values can be added to the input of which operation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from passes.architecture.coupling import Merge, ValueMaps
from passes.architecture.policy import Policy
from passes.architecture.removals import Chain
from passes.architecture.steps import SHOWN, WEIGHTED, Step

# Where the input of an operation may be a sum; the parts of a concatenation are in an order.
_TARGETS = WEIGHTED | {"norm", "act", "pool"}


@dataclass(frozen=True, slots=True)
class Skip:
    """One skip connection that may be added.

    Attributes:
        source: Place of the step whose value is added.
        target: Place of the step to whose input it is added.
        merge: Channel groups that become one.
    """

    source: int
    target: int
    merge: Merge


def equal_shapes(
    steps: Sequence[Step], chains: Sequence[Chain], *, anywhere: bool
) -> Iterator[tuple[int, int]]:
    """Pairs of a value and a later operation whose input has the same shape and type.

    Those that are connected already are among them.

    Args:
        steps: All steps.
        chains: The steps that go together.
        anywhere: Every operation is a source and a target, not only the ends of chains.
    """
    if anywhere:
        sources = targets = [s for s in steps if s.kind in SHOWN or s.kind == "pass"]
    else:
        sources = [steps[chain.steps[-1]] for chain in chains]
        targets = [steps[chain.steps[0]] for chain in chains]
        targets = [step for step in targets if step.kind in _TARGETS]
    for target in targets:
        given = steps[target.data]
        for source in sources:
            alike = source.dtype is not None and source.dtype == given.dtype
            if alike and source.shape == given.shape and source.index < target.index:
                yield source.index, target.index


def possible_skips(
    steps: Sequence[Step],
    chains: Sequence[Chain],
    maps: ValueMaps,
    policy: Policy,
    reach: Sequence[int],
    layer_of: Sequence[int],
) -> tuple[Skip, ...]:
    """The skip connections that can be added to the teacher, each on its own.

    Args:
        steps: All steps.
        chains: The steps that go together: the layers of a sketch.
        maps: Where the channels of every value belong.
        policy: Which skips are asked for.
        reach: Of every step, the layers that its value comes from directly, as a set of bits.
        layer_of: Of every step the number of its layer, or -1.
    """
    if policy.skips == "none":
        return ()
    found = []
    for source, target in equal_shapes(steps, chains, anywhere=policy.skip_anywhere):
        plain = layer_of[source] >= 0 and steps[target].kind in _TARGETS
        data = steps[target].data
        dtype = steps[source].dtype
        if not plain or dtype is None or not dtype.is_floating_point:
            continue
        if source == data or reach[data] >> layer_of[source] & 1:
            continue  # they are connected
        if layer_of[source] == layer_of[target]:
            continue  # a layer is not connected with itself
        merge = maps.merge(steps[source].node, steps[data].node)
        if isinstance(merge, Merge):
            found.append(Skip(source, target, merge))
    return tuple(found)
