"""Data sets by name: in memory, split once, batched the same way on every machine."""

from bench.zoo.data.load import DataSplits, load_data
from bench.zoo.data.loader import Batches, ShuffledBatches
from bench.zoo.data.spec import NAMES, DataSpec, parse_spec

__all__ = [
    "NAMES",
    "Batches",
    "DataSpec",
    "DataSplits",
    "ShuffledBatches",
    "load_data",
    "parse_spec",
]
