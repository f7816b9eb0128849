"""Rules for single layers, and what cannot be counted, as properties of channel groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from passes.graph import Decision, LayerRule, ModelGraph, Site
from passes.structure.geometry import uncounted
from passes.structure.groups import ChannelGroup, ChannelGroups
from passes.structure.lines import Lines


def restricted(groups: ChannelGroups, graph: ModelGraph) -> ChannelGroups:
    """The groups with the rules of a graph for single layers.

    A layer that is left alone loses no channels; neither does one that has a rule and already holds
    zeros, whose density is not that of its shape. A layer that keeps a share of its weights keeps
    the root of that share of its inputs and of its outputs, or all of the share of the one that can
    be cut. Groups are frozen too whose effect on multiply-accumulates and energy cannot be counted.

    Args:
        groups: The model's groups.
        graph: The traced model with its rules.
    """
    lines = Lines(graph, groups)
    reasons = uncounted(graph, groups, lines)
    least: dict[str, int] = {}
    for site in graph.compressible:
        rule = graph.rules.get(site.name)
        if rule is None or rule.min_density <= 0:
            continue
        cutting = sorted(lines.cutting(graph.parameter(site)))
        why = _left_alone(graph, site, rule)
        if why:
            reasons |= dict.fromkeys(cutting, why)
            continue
        for name, count in _least_of(lines, site, rule).items():
            least[name] = max(count, least.get(name, 0))
    decisions = tuple(
        Decision(group.name, "channels stay", reasons[group.name], before=f"{group.units} units")
        for group in groups.free
        if group.name in reasons
    )
    found = tuple(_with(group, reasons, least) for group in groups)
    return ChannelGroups(found, (*groups.decisions, *decisions))


def keeping_at_least(groups: ChannelGroups, share: float) -> ChannelGroups:
    """The groups, each of which keeps at least a share of its units.

    Args:
        groups: The groups.
        share: From 0 to 1.
    """

    def least(group: ChannelGroup) -> ChannelGroup:
        count = math.ceil(round(share * group.units, 6))
        return replace(group, minimum=max(group.minimum, count))

    found = (group if group.frozen else least(group) for group in groups)
    return replace(groups, groups=tuple(found))


def _with(
    group: ChannelGroup, reasons: Mapping[str, str], least: Mapping[str, int]
) -> ChannelGroup:
    if group.frozen:
        return group
    if group.name in reasons:
        return replace(group, frozen=True, why=reasons[group.name])
    minimum = max(group.minimum, least.get(group.name, 0))
    return replace(group, minimum=min(group.units, minimum))


def _left_alone(graph: ModelGraph, site: Site, rule: LayerRule) -> str:
    """Why a layer with a rule loses no channels; empty if it can."""
    if rule.min_density >= 1:
        return f"layer {site.name!r} is left alone"
    if int(torch.count_nonzero(graph.weight(site))) < site.size:
        return f"layer {site.name!r} has a rule, and holds zeros already"
    return ""


def _least_of(lines: Lines, site: Site, rule: LayerRule) -> dict[str, int]:
    """Units that a layer's rule asks of every group that cuts it."""
    sides = lines.of_site(site)
    if sides is None:
        return {}
    cut = [lines.all[side.line] for side in sides if side.line is not None]
    share = rule.min_density ** (1 / max(1, len(cut)))
    found: dict[str, int] = {}
    for line in cut:
        for name, counts in line.counts.items():
            found[name] = max(_fewest(counts, share), found.get(name, 0))
    return found


def _fewest(counts: NDArray[np.int64], share: float) -> int:
    """Units that hold at least a share of a group's channels, whichever units they are."""
    held = np.cumsum(np.sort(counts))
    # A share such as 0.1 is not exact in binary: 0.1 of 30 channels is 3, not 4.
    return int(np.searchsorted(held, share * held[-1] * (1 - 1e-12))) + 1
