"""Structured pruning by evolving keep-states: the method `ising`."""

from __future__ import annotations

from passes.methods.ising.config import Ising
from passes.methods.ising.method import SPEC, IsingPruning

__all__ = ["SPEC", "Ising", "IsingPruning"]
