"""Configurations of methods."""

from __future__ import annotations

from dataclasses import dataclass

from energy_model.config import Config


@dataclass(frozen=True)
class MethodConfig(Config):
    """Base of every method's configuration; the class tells which method is meant."""
