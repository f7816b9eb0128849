"""The method of weights that are looked up in small banks."""

from passes.methods.tied.config import TiedWeights
from passes.methods.tied.method import SPEC, WeightTying

__all__ = ["SPEC", "TiedWeights", "WeightTying"]
