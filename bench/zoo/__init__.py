"""Small models and data for demonstrations and benchmarks.

Importing this package also makes torchvision importable on a CPU-only torch, so that a model can be
named as `torchvision.models:alexnet` or `bench.zoo:lenet5` alike.
"""

from passes.torchvision_shim import ensure_torchvision_importable

ensure_torchvision_importable()

from bench.zoo.digits import digits_batches, train_digits  # noqa: E402
from bench.zoo.digits_cnn import digits_cnn  # noqa: E402
from bench.zoo.lenet5 import LeNet5, lenet5  # noqa: E402

__all__ = ["LeNet5", "digits_batches", "digits_cnn", "lenet5", "train_digits"]
