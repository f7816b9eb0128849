"""The published functions and independent exact solvers on small cases (CVPR 2020)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bench.zoo.data_root import data_root


def oracle(group):
    """The cases of one group."""
    path = data_root().parent / "specs" / "joint-oracle.json"
    if not path.exists():
        pytest.skip(f"the oracle is not at {path}: set TRANSFORM_DATA to the data root")
    return json.loads(path.read_text())[group]


def lenet5_weights():
    """The pretrained LeNet-5, rounded to float16."""
    path = data_root() / "weights" / "mnist_lenet5_fp16.npz"
    if not path.exists():
        pytest.skip(f"the trained LeNet-5 is not at {path}: set TRANSFORM_DATA to the data root")
    with np.load(path) as file:
        names = [name for name in file if name.endswith("weight")]
        return [torch.from_numpy(file[name].astype(np.float32)) for name in names]


def float32s(values):
    return torch.tensor(values, dtype=torch.float32)
