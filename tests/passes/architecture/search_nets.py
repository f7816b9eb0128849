"""Small nets of the families that a search must handle, and what tests do with their spaces."""

from __future__ import annotations

import functools
import random

import torch
from torch import nn
from torch.nn import functional as F

from bench.zoo.resnet import BasicBlock
from bench.zoo.shufflenet import ShuffleBlock
from energy_model.hardware import load_hardware
from passes.architecture.costs import KEYS
from passes.architecture.space import SearchSpace
from passes.inputs import as_call
from passes.tracing.trace import trace

HARDWARE = load_hardware("eyeriss")


class SmallResNet(nn.Module):
    """A stem and two stages; the second begins with a convolution as its shortcut."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        blocks = [BasicBlock(8, 8, 1), BasicBlock(8, 8, 1), BasicBlock(8, 12, 2)]
        self.blocks = nn.Sequential(*blocks, BasicBlock(12, 12, 1), BasicBlock(12, 12, 1))
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class SmallVgg(nn.Module):
    """Convolutions in a row, and linear layers behind a map of 2 x 2 positions."""

    def __init__(self):
        super().__init__()
        layers = []
        channels = 3
        for width in (6, 6, "pool", 10, 10, 10, "pool"):
            if width == "pool":
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width)]
            layers.append(nn.ReLU(inplace=True))
            channels = width
        self.features = nn.Sequential(*layers)
        hidden = [nn.Linear(40, 16), nn.ReLU(inplace=True), nn.Dropout(0.5)]
        self.classifier = nn.Sequential(
            *hidden, nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 5)
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))


class SmallShuffleNet(nn.Module):
    """Grouped convolutions, channel shuffles, depthwise convolutions and a concatenation."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks = [ShuffleBlock(16, 32, 2), ShuffleBlock(32, 32, 1), ShuffleBlock(32, 32, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(32, 5)

    def forward(self, x):
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class InvertedBlock(nn.Module):
    """Expansion, depthwise convolution and projection without an activation."""

    def __init__(self, inputs, outputs, stride, expand):
        super().__init__()
        inner = inputs * expand
        layers = []
        if expand != 1:
            layers += [nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)]
            layers.append(nn.ReLU6(inplace=True))
        layers += [nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)]
        layers += [nn.BatchNorm2d(inner), nn.ReLU6(inplace=True)]
        layers += [nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.conv(x) if self.adds else self.conv(x)


class SmallMobileNet(nn.Module):
    def __init__(self):
        super().__init__()
        stem = [nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)]
        blocks = [InvertedBlock(8, 8, 1, 1), InvertedBlock(8, 8, 1, 3), InvertedBlock(8, 12, 2, 3)]
        head = [nn.Conv2d(12, 20, 1, bias=False), nn.BatchNorm2d(20), nn.ReLU6(inplace=True)]
        self.features = nn.Sequential(*stem, *blocks, InvertedBlock(12, 12, 1, 3), *head)
        self.classifier = nn.Linear(20, 5)

    def forward(self, x):
        return self.classifier(self.features(x).mean([2, 3]))


class Encoder(nn.Module):
    """A transformer layer, norms first; attention is torch's, or written by hand."""

    def __init__(self, width, heads, by_hand):
        super().__init__()
        self.by_hand, self.size = by_hand, width // heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        if by_hand:
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        else:
            self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def attend(self, x):
        if not self.by_hand:
            return self.attention(x, x, x, need_weights=False)[0]
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, -1, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, x):
        x = x + self.attend(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class SmallViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.position = nn.Parameter(torch.randn(1, 4, 12) / 5)
        self.layers = nn.Sequential(*(Encoder(12, 3, by_hand) for by_hand in (True, False, True)))
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.layers(x)).mean(1))


class Cells(nn.Module):
    """Two branches that are concatenated, twice; the sums are written in place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.left = nn.ModuleList([nn.Conv2d(6, 4, 1), nn.Conv2d(10, 4, 1)])
        self.right = nn.ModuleList([nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(10, 6, 3, padding=1)])
        self.mix = nn.Conv2d(10, 10, 1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(10, 5)

    def forward(self, x):
        x = self.act(self.stem(x))
        for left, right in zip(self.left, self.right, strict=True):
            x = torch.cat([self.act(left(x)), self.act(right(x))], 1)
        y = self.mix(x)
        y += x
        return self.head(F.relu(y, inplace=True).mean((2, 3)))


FAMILIES = {
    "resnet": SmallResNet,
    "vgg": SmallVgg,
    "shufflenet": SmallShuffleNet,
    "mobilenet": SmallMobileNet,
    "vit": SmallViT,
    "cells": Cells,
}


def no_zeros(model, seed=0):
    """Values for all tensors that tell channels apart, and no weight that happens to be zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not tensor.is_floating_point():
                continue
            if tensor.dim() < 2:
                noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.copy_(noise + 0.5 if name.endswith(("weight", "var")) else noise - 0.5)
            tensor[tensor == 0] = 1e-3
    return model


def teacher(make, side=8, dtype=torch.float64):
    torch.manual_seed(0)
    model = no_zeros(make().to(dtype)).eval()
    return trace(model, as_call(model, torch.randn(2, 3, side, side, dtype=dtype)))


@functools.cache
def family(name):
    """A traced teacher, which tests do not change."""
    return teacher(FAMILIES[name])


def space_of(name, policy=None, hardware=HARDWARE, **options):
    keys = [key for key in KEYS if key != "size"]  # no file is written here
    return SearchSpace(family(name), hardware, policy, keys=keys, **options)


@functools.cache
def family_space(name):
    return space_of(name)


def genotypes(space, count, seed=0):
    """Half of them random, half mutations of those."""
    rng = random.Random(seed)
    found = [space.sample(rng) for _ in range(count - count // 2)]
    return found + [space.mutate(found[i], rng) for i in range(count // 2)]


def outputs(graph, seed=7):
    """What a graph returns for the example's shape, in evaluation mode."""
    example = graph.call.tensors()[0]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(example.shape, generator=generator, dtype=example.dtype)
    graph.runnable.eval()
    with torch.no_grad():
        return graph.runnable(x)
