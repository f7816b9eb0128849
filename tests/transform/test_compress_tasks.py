"""Models that are no classifiers of one input, from training to the ONNX file."""

from __future__ import annotations

import gc

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import transform
from transform.fingerprint import state_digest

# Compressions of other tasks than classification: `make test-slow` runs them.
pytestmark = pytest.mark.slow

IGNORED, CLASSES = 255, 3


@pytest.fixture(autouse=True)
def few_objects_to_collect():
    """Every run ends in a full garbage collection, which would look through all of torch."""
    gc.freeze()
    yield
    gc.unfreeze()


def seeded(make):
    """What `make()` returns, from a seed, without touching the global state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def trained_on(model, data, loss, epochs, lr):
    """The model after plain training, for a metric before that is worth something."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(epochs):
        for inputs, targets in data:
            optimizer.zero_grad()
            loss(model(*inputs), targets).backward()
            optimizer.step()
    return model.eval()


def by_onnx(path, **inputs):
    """All outputs of a file, as ONNX Runtime computes them."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    assert sorted(names) == sorted(inputs)
    return session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})


def outputs_of(model, *inputs):
    with torch.no_grad():
        return model.eval()(*inputs)


# segmentation


class Segmenter(nn.Module):
    """Classes of pixels: input `(N, 1, 12, 12)`, output `(N, 3, 12, 12)`."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 8, 4, 2, 1)
        self.skip = nn.Conv2d(1, 8, 3, padding=1)
        self.head = nn.Conv2d(8, CLASSES, 1)

    def forward(self, image):
        return self.head(torch.relu(self.up(self.down(image)) + self.skip(image)))


def pictures():
    """Dark, grey and bright pixels in stripes, with noise; the first row is not labelled."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(CLASSES, (24, 6), generator=generator)
    y = labels.repeat_interleave(2, 1).unsqueeze(1).expand(24, 12, 12).clone()
    x = y.unsqueeze(1) / 2 - 0.5 + 0.1 * torch.randn(24, 1, 12, 12, generator=generator)
    y[:, 0] = IGNORED
    return list(zip(x.split(8), y.split(8), strict=True))


def pixel_loss(outputs, targets):
    return F.cross_entropy(outputs, targets, ignore_index=IGNORED)


class MeanIoU:
    """Intersection over union of every class, accumulated over batches, then their mean."""

    def reset(self):
        self.confusion = torch.zeros(CLASSES, CLASSES)

    def update(self, outputs, targets):
        known = targets != IGNORED
        pairs = targets[known] * CLASSES + outputs.argmax(1)[known]
        counts = torch.bincount(pairs, minlength=CLASSES**2)
        self.confusion += counts.reshape(CLASSES, CLASSES)

    def compute(self):
        both = self.confusion.diagonal()
        return float((both / (self.confusion.sum(0) + self.confusion.sum(1) - both)).mean())


def batch_iou(outputs, targets):
    """Mean over the classes of one batch, as a function."""
    metric = MeanIoU()
    metric.reset()
    metric.update(outputs, targets)
    return metric.compute()


def iou_by_hand(model, data):
    """Sets of pixels, class by class, counted in NumPy over all the data."""
    found = np.concatenate([outputs_of(model, x).numpy().argmax(1) for x, _ in data])
    wanted = np.concatenate([y.numpy() for _, y in data])
    shares = []
    for number in range(CLASSES):
        ours = {tuple(i) for i in np.argwhere((found == number) & (wanted != IGNORED))}
        theirs = {tuple(i) for i in np.argwhere(wanted == number)}
        shares.append(len(ours & theirs) / len(ours | theirs))
    return sum(shares) / CLASSES


def mean_over_batches(model, data):
    """The mean of a function of batches, weighted by their samples."""
    values = [(batch_iou(outputs_of(model, x), y), len(x)) for x, y in data]
    return sum(value * size for value, size in values) / sum(size for _, size in values)


@pytest.fixture(scope="module")
def segmenter():
    data = [((x,), y) for x, y in pictures()]
    return trained_on(seeded(Segmenter), data, pixel_loss, epochs=12, lr=0.02)


@pytest.mark.parametrize(
    ("metric", "by_hand"), [(MeanIoU(), iou_by_hand), (batch_iou, mean_over_batches)]
)
def test_a_segmentation_model(segmenter, metric, by_hand, tmp_path):
    data, out = pictures(), tmp_path / "out"
    uneven = [*data[:2], (data[2][0][:3], data[2][1][:3])]
    result = transform.compress(
        segmenter,
        "energy<=60%",
        data,
        valid=uneven,
        loss=pixel_loss,
        metric=metric,
        train={"epochs": 6, "lr": 0.1},
        out=out,
        progress="none",
    )
    assert result.certificate.holds
    assert result.metrics["before"] == pytest.approx(by_hand(segmenter, uneven))
    assert result.metrics["after"] == pytest.approx(by_hand(result.model, uneven))
    assert result.metrics["before"] > 0.9
    assert result.metrics["after"] > 0.8

    loaded = transform.load(out, Segmenter())
    assert loaded.metrics == result.metrics
    assert state_digest(loaded.model) == state_digest(result.model)
    x = uneven[0][0]
    [exported] = by_onnx(out / "model.onnx", image=x)
    ours = outputs_of(loaded.model, x).numpy()
    assert exported.shape == (8, CLASSES, 12, 12)
    np.testing.assert_allclose(exported, ours, atol=1e-4)
    assert (exported.argmax(1) == ours.argmax(1)).all()


# two inputs


class Pair(nn.Module):
    """An image `(N, 1, 6, 6)` and numbers beside it `(N, 4)`: 3 classes."""

    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 12))
        self.numbers = nn.Linear(4, 12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, image, numbers):
        return self.head(torch.relu(self.image(image) + self.numbers(numbers)))


def pairs():
    """The class needs both: how bright the image is, and the sign of the first number."""
    generator = torch.Generator().manual_seed(4)
    bright = torch.randint(2, (32,), generator=generator)
    image = 0.1 * torch.randn(32, 1, 6, 6, generator=generator) + bright.reshape(-1, 1, 1, 1)
    numbers = torch.randn(32, 4, generator=generator)
    targets = bright * (1 + (numbers[:, 0] > 0))
    return list(zip(image.split(8), numbers.split(8), targets.split(8), strict=True))


FORMS = {
    "tuple": lambda image, numbers, targets: ((image, numbers), targets),
    "flat": lambda image, numbers, targets: (image, numbers, targets),
    "dict": lambda image, numbers, targets: {
        "inputs": {"numbers": numbers, "image": image},
        "targets": targets,
    },
}


def worst_class(outputs, targets):
    """The recall of the class that is found least."""
    right = outputs.argmax(1) == targets
    return min(float(right[targets == number].float().mean()) for number in targets.unique())


def worst_class_by_hand(model, data):
    """The mean over batches of one size; element by element."""
    values = []
    for image, numbers, targets in data:
        rows = outputs_of(model, image, numbers).tolist()
        found = [row.index(max(row)) for row in rows]
        recalls = []
        for number in set(targets.tolist()):
            mine = [row for row, target in zip(found, targets, strict=True) if target == number]
            recalls.append(mine.count(number) / len(mine))
        values.append(min(recalls))
    return sum(values) / len(values)


@pytest.fixture(scope="module")
def pair():
    data = [((image, numbers), targets) for image, numbers, targets in pairs()]
    return trained_on(seeded(Pair), data, F.cross_entropy, epochs=40, lr=0.01)


@pytest.fixture(scope="module")
def results(pair, tmp_path_factory):
    """The same run, with batches of every form."""
    found = {}
    for name, make in FORMS.items():
        out = tmp_path_factory.mktemp(name) / "out"
        data = [make(*batch) for batch in pairs()]
        found[name] = (
            out,
            transform.compress(
                pair,
                "energy<=60%",
                data,
                valid=data,
                metric=worst_class,
                train={"epochs": 4, "lr": 0.05},
                out=out,
                progress="none",
            ),
        )
    return found


@pytest.mark.parametrize("form", FORMS)
def test_a_model_of_two_inputs(pair, results, form):
    out, result = results[form]
    assert result.certificate.holds
    assert result.metrics["before"] == pytest.approx(worst_class_by_hand(pair, pairs()))
    assert result.metrics["after"] == pytest.approx(worst_class_by_hand(result.model, pairs()))
    assert result.metrics["before"] > 0.9
    assert result.metrics["after"] > 0.8

    loaded = transform.load(out, Pair())
    assert loaded.metrics == result.metrics
    assert state_digest(loaded.model) == state_digest(result.model)
    image, numbers, _ = pairs()[0]
    [exported] = by_onnx(out / "model.onnx", image=image, numbers=numbers)
    np.testing.assert_allclose(
        exported, outputs_of(loaded.model, image, numbers).numpy(), atol=1e-4
    )


def test_the_form_of_the_batches_changes_nothing(results):
    digests = {state_digest(result.model) for _, result in results.values()}
    assert len(digests) == 1
    histories = [result.history for _, result in results.values()]
    assert histories[0] == histories[1] == histories[2]


def test_both_inputs_are_used(results):
    """A file that swapped or dropped one would not agree on these."""
    out, result = results["dict"]
    image, numbers, _ = pairs()[0]
    [exported] = by_onnx(out / "model.onnx", image=image, numbers=numbers)
    for changed in ((image.flip(0), numbers), (image, numbers.flip(0))):
        other = outputs_of(result.model, *changed).numpy()
        assert np.abs(exported - other).max() > 0.1
