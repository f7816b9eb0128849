"""Architecture search in a learned embedding space: the method `embedding`."""

from __future__ import annotations

from passes.methods.embedding.config import EmbeddingSearch
from passes.methods.embedding.method import SPEC, EmbeddingSearchMethod

__all__ = ["SPEC", "EmbeddingSearch", "EmbeddingSearchMethod"]
