"""Makes torchvision importable on a CPU-only torch.

The torchvision wheel of the package index is built against CUDA. On a CPU-only torch its extension
library does not load, its operators have no schema, and `import torchvision` stops with "operator
torchvision::nms does not exist". Declaring the two schemas that are read at import time is enough
for models and transforms; operators that really run C++ stay unavailable.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")

# A schema lives as long as the library object that declared it.
_declared: list[torch.library.Library] = []


def ensure_torchvision_importable() -> None:
    """Declare torchvision's operator schemas where its own library cannot.

    Call it before the first `import torchvision`. It may be called any number of times, and does
    nothing when torchvision is absent, already imported, or fits the installed torch.
    """
    if _declared or "torchvision" in sys.modules:
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    _load_extension(Path(spec.origin).parent)
    missing = [name for name in _OPERATORS if not hasattr(torch.ops.torchvision, name)]
    if not missing:
        return
    # FRAGMENT, because the namespace may already have an owner.
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in missing:
        library.define(name + _SCHEMA)  # type: ignore[no-untyped-call]
    _declared.append(library)


def _load_extension(folder: Path) -> None:
    """Load torchvision's own operators: if they fit this torch, ours would clash with them."""
    for library in sorted(folder.glob("_C*.so")) + sorted(folder.glob("_C*.pyd")):
        with contextlib.suppress(OSError, ImportError):
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
