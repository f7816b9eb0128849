"""The method of networks that are sparse from the start and rewire while they train."""

from passes.methods.sparse_training.config import SparseTraining
from passes.methods.sparse_training.method import SPEC, DynamicSparseTraining

__all__ = ["SPEC", "DynamicSparseTraining", "SparseTraining"]
