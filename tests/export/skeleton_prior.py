"""Makes the text that skeletons of archives are coded with, into the file that is named.

    python tests/export/skeleton_prior.py skeleton_prior_1.bin

Layers of many kinds, named as they usually are, exported as the compiler exports them. A piece that
says little new is left out; what is likeliest comes last, where it is found first. The text of a
version that was released never changes: another text needs another version of the archive.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import zlib
from pathlib import Path

import torch
from quantized_nets import quantize, seeded
from torch import nn

from energy_model.hardware import load_hardware
from export.archive_skeleton import split
from export.onnx_file import float_model
from export.qdq import write_qdq
from export.sparse import write_sparse
from passes.inputs import as_call
from passes.rewrite.freeze import freeze
from passes.tracing.trace import trace

_TAGS = (b"\n", b"*", b"Z", b"b")


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Block(64, 64), Block(64, 64))
        self.layer2 = nn.Sequential(Block(64, 128, 2), Block(128, 128))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(128, 1000)

    def forward(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(x))), 1))


class Inverted(nn.Module):
    def __init__(self, width=16, hidden=96):
        super().__init__()
        depthwise = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False)
        self.conv = nn.Sequential(
            nn.Sequential(nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden)),
            nn.ReLU6(),
            nn.Sequential(depthwise, nn.BatchNorm2d(hidden), nn.Hardswish()),
            nn.Conv2d(hidden, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 8, 1), nn.ReLU(), nn.Conv2d(8, width, 1),
            nn.Hardsigmoid(),
        )  # fmt: skip

    def forward(self, x):
        y = self.conv(x)
        return x + y * self.scale(y)


class Mobile(nn.Module):
    def __init__(self):
        super().__init__()
        first = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.features = nn.Sequential(first, Inverted(), Inverted())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 1000))

    def forward(self, x):
        return self.classifier(self.features(x).mean([2, 3]))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(100, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return torch.softmax(self.head(self.norm(self.encoder(self.embed(x)))[:, 0]), 1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(8, 16, 3, padding=1)
        self.up = nn.ConvTranspose1d(16, 16, 2, 2)
        self.lstm = nn.LSTM(16, 12, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(12, 20), nn.Linear(20, 4)

    def forward(self, x):
        y, _ = self.lstm(torch.tanh(self.up(torch.sigmoid(self.conv(x)))).transpose(1, 2))
        return self.fc2(nn.functional.leaky_relu(self.fc1(y[:, -1])))


class Features(nn.Module):
    """The convolutional network of the textbooks: `features` and a `classifier`."""

    def __init__(self, channels=1, size=32, kernel=5, padding=0, *, norm=False, pool=nn.MaxPool2d):
        super().__init__()
        first = [nn.Conv2d(channels, 32, kernel, padding=padding), nn.ReLU(), pool(2)]
        if norm:
            first.insert(1, nn.BatchNorm2d(32))
        second = [nn.Conv2d(32, 64, kernel, padding=padding), nn.ReLU(), pool(2)]
        self.features = nn.Sequential(*first, *second)
        side = ((size - kernel + 1 + 2 * padding) // 2 - kernel + 1 + 2 * padding) // 2
        self.classifier = nn.Sequential(
            nn.Linear(64 * side * side, 128), nn.ReLU(), nn.Linear(128, 10)
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, x):
        pool = nn.functional.max_pool2d
        x = pool(torch.relu(self.conv2(pool(torch.relu(self.conv1(x)), 2))), 2)
        return nn.functional.log_softmax(self.fc2(torch.relu(self.fc1(x.view(-1, 800)))), dim=1)


def sequential():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(),
        nn.Linear(100, 10),
    )  # fmt: skip


def dense(model, *shape, integers=False):
    """The skeleton of a model as floats."""
    example = torch.zeros(shape, dtype=torch.long) if integers else torch.zeros(shape)
    graph = trace(model.eval(), as_call(model, example), train=False)
    return split(float_model(freeze(graph).module, graph.call).SerializeToString())[0]


def quantized(build, *shape, **options):
    model, inputs = seeded(build, shape)
    return written(write_qdq, quantize(model, inputs, **options))


def sparse(model, *shape):
    graph = trace(model.eval(), as_call(model, torch.zeros(shape)), train=False)
    with torch.no_grad():
        for site in graph.compressible:
            graph.weight(site).flatten()[::2] = 0
    return written(write_sparse, graph)


def written(write, graph):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write(graph, load_hardware("eyeriss"), path)
        return split(path.read_bytes())[0]


def corpus():
    """Skeletons, the likeliest last, and what a piece of each must say that is new, in bytes."""
    yield 12, dense(Encoder(), 2, 7, integers=True)
    yield 14, dense(Recurrent(), 2, 8, 6)
    yield 12, dense(Mobile(), 2, 3, 32, 32)
    yield 11, sparse(Features(), 2, 1, 32, 32)
    yield 11, quantized(lambda: Features(3, padding=2), 2, 3, 32, 32)
    yield 0, quantized(Features, 2, 1, 32, 32, weights=4, activations=0, block=32)
    yield 11, dense(Residual(), 2, 3, 64, 64)
    yield 0, dense(sequential(), 2, 1, 28, 28)
    yield 11, dense(Plain(), 2, 1, 28, 28)
    yield 11, dense(Features(3, kernel=3, padding=1, norm=True, pool=nn.AvgPool2d), 2, 3, 32, 32)
    yield 0, dense(Features(), 2, 1, 32, 32)


def pieces(skeleton):
    """A skeleton in parts, each the field of a message that stands in the graph."""
    begin = 0
    for place in range(1, len(skeleton)):
        if skeleton[place - 1] == 0 and skeleton[place : place + 1] in _TAGS:
            yield skeleton[begin:place]
            begin = place
    yield skeleton[begin:]


def novelty(piece, text):
    """Bytes of a piece behind a text, by deflate."""
    packer = zlib.compressobj(9, wbits=-15, zdict=text[-32768:]) if text else zlib.compressobj(9)
    return len(packer.compress(piece) + packer.flush())


def make():
    """The text."""
    text = b""
    for least, skeleton in reversed(list(corpus())):
        kept = b""
        for piece in pieces(skeleton):
            if novelty(piece, text + kept) >= least:
                kept += piece
        text = kept + text
    return text


if __name__ == "__main__":
    torch.manual_seed(0)
    made = make()
    Path(sys.argv[1]).write_bytes(made)
    print(len(made), hashlib.sha256(made).hexdigest())
