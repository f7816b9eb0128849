"""Fit a PyTorch model into a physical budget, and prove it.

import transform

result = transform.compress(model, "energy<=25%", example_inputs=x)
print(result)
result.export("model.onnx")
"""

from __future__ import annotations

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import Any as _Any

import energy_model as _energy_model

if _Path(_energy_model.__path__[0]).resolve().parent != _Path(__file__).resolve().parent.parent:
    raise ImportError(
        f"the compiler's package 'energy_model' is shadowed by {_energy_model.__path__[0]}. "
        "Rename or move that folder, or start Python elsewhere.",
        name="energy_model",
        path=str(_energy_model.__path__[0]),
    )

from energy_model._house import require_own_rooms as _require_own_rooms

_require_own_rooms()

from energy_model.budget import Budget, joint_budget  # noqa: E402
from energy_model.cost import CostTable  # noqa: E402
from energy_model.errors import (  # noqa: E402
    ArgumentError,
    BudgetError,
    CompressionError,
    ExportError,
    HardwareError,
    InfeasibleBudget,
    ParityError,
    PostconditionError,
    PreconditionError,
    StorageError,
    TraceError,
    TrainingError,
    UnsupportedBudget,
    UnsupportedLayer,
)
from energy_model.hardware import Hardware  # noqa: E402
from passes.dynamic.pruning_steps import PruningSteps  # noqa: E402
from passes.dynamic.walk import Walk  # noqa: E402
from passes.methods.embedding.config import EmbeddingSearch  # noqa: E402
from passes.methods.energy_projection import EnergyProjection  # noqa: E402
from passes.methods.ising.config import Ising  # noqa: E402
from passes.methods.joint.config import Joint  # noqa: E402
from passes.methods.magnitude import Magnitude  # noqa: E402
from passes.methods.quantize_config import Quantize  # noqa: E402
from passes.methods.registry import methods  # noqa: E402
from passes.methods.sparse_training.config import SparseTraining  # noqa: E402
from passes.methods.structured_config import (  # noqa: E402
    BatchNormChannels,
    L1Channels,
    L2Channels,
    RandomChannels,
    TaylorChannels,
)
from passes.methods.tied.config import TiedWeights  # noqa: E402
from passes.reconstruct.config import Reconstruction  # noqa: E402
from transform.analyze import analyze  # noqa: E402
from transform.certificate import Certificate  # noqa: E402
from transform.compress import compress  # noqa: E402
from transform.result import Compressed, Export  # noqa: E402
from transform.sensitivity import sensitivity  # noqa: E402
from transform.sensitivity_table import Sensitivity  # noqa: E402
from transform.storage import load  # noqa: E402
from transform.structure import Structure, structure  # noqa: E402
from transform.training.config import Distill, TrainConfig  # noqa: E402

__version__ = "0.1.0"


def __getattr__(name: str) -> _Any:
    """`transform.testing` is for authors of methods; it is imported when it is asked for."""
    if name == "testing":
        return _import_module("transform.testing")
    raise AttributeError(f"module 'transform' has no attribute {name!r}")


__all__ = [
    "ArgumentError",
    "BatchNormChannels",
    "Budget",
    "BudgetError",
    "Certificate",
    "Compressed",
    "CompressionError",
    "CostTable",
    "Distill",
    "EmbeddingSearch",
    "EnergyProjection",
    "Export",
    "ExportError",
    "Hardware",
    "HardwareError",
    "InfeasibleBudget",
    "Ising",
    "Joint",
    "L1Channels",
    "L2Channels",
    "Magnitude",
    "ParityError",
    "PostconditionError",
    "PreconditionError",
    "PruningSteps",
    "Quantize",
    "RandomChannels",
    "Reconstruction",
    "Sensitivity",
    "SparseTraining",
    "StorageError",
    "Structure",
    "TaylorChannels",
    "TiedWeights",
    "TraceError",
    "TrainConfig",
    "TrainingError",
    "UnsupportedBudget",
    "UnsupportedLayer",
    "Walk",
    "analyze",
    "compress",
    "joint_budget",
    "load",
    "methods",
    "sensitivity",
    "structure",
]
