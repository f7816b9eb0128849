"""ResNet-18 with about a hundred classes."""

from __future__ import annotations

import pytest
import torch

from bench.zoo.hundred_classes import resnet18_cifar100, resnet18_flowers102


@pytest.mark.parametrize(
    ("build", "classes", "parameters"),
    [(resnet18_cifar100, 100, 11_220_132), (resnet18_flowers102, 102, 11_221_158)],
)
def test_classes_and_parameters(build, classes, parameters):
    with torch.device("meta"):
        model = build()
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
