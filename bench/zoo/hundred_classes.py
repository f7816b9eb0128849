"""ResNet-18 for the data sets with about a hundred classes, on images of 32 x 32 pixels."""

from __future__ import annotations

from bench.zoo.resnet import ResNet, resnet18


def resnet18_cifar100() -> ResNet:
    """ResNet-18 for CIFAR-100: 11,220,132 parameters, initialised as `resnet18`."""
    return resnet18(100)


def resnet18_flowers102() -> ResNet:
    """ResNet-18 for Flowers-102: 11,221,158 parameters, initialised as `resnet18`."""
    return resnet18(102)
