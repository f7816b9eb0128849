"""Small models and data for demonstrations, recipes and benchmarks.

Importing this package also makes torchvision importable on a CPU-only torch, so that a model can be
named as `torchvision.models:alexnet` or `bench.zoo:lenet5` alike.
"""

from passes.torchvision_shim import ensure_torchvision_importable

ensure_torchvision_importable()

from bench.zoo.cifar_resnet import (  # noqa: E402
    CifarResNet,
    resnet8_gray,
    resnet20,
    resnet32,
    resnet44,
    resnet56,
)
from bench.zoo.digits import digits_batches, train_digits  # noqa: E402
from bench.zoo.digits_cnn import digits_cnn  # noqa: E402
from bench.zoo.lenet5 import LeNet5, lenet5  # noqa: E402
from bench.zoo.lenet5_caffe import LeNet5Caffe, lenet5_caffe  # noqa: E402
from bench.zoo.lenet_300_100 import lenet_300_100, lenet_300_100_bn  # noqa: E402
from bench.zoo.mlperftiny_resnet8 import ResNet8, mlperftiny_resnet8  # noqa: E402
from bench.zoo.resnet import ResNet, resnet18, resnet18_gray, resnet34  # noqa: E402
from bench.zoo.shufflenet import ShuffleNet, shufflenet  # noqa: E402
from bench.zoo.vgg import VGG, vgg19  # noqa: E402
from bench.zoo.wrn import (  # noqa: E402
    WideResNet,
    wrn,
    wrn_16_1,
    wrn_16_2,
    wrn_22_2,
    wrn_28_2,
    wrn_28_10,
    wrn_40_2,
)

__all__ = [
    "VGG",
    "CifarResNet",
    "LeNet5",
    "LeNet5Caffe",
    "ResNet",
    "ResNet8",
    "ShuffleNet",
    "WideResNet",
    "digits_batches",
    "digits_cnn",
    "lenet5",
    "lenet5_caffe",
    "lenet_300_100",
    "lenet_300_100_bn",
    "mlperftiny_resnet8",
    "resnet8_gray",
    "resnet18",
    "resnet18_gray",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet56",
    "shufflenet",
    "train_digits",
    "vgg19",
    "wrn",
    "wrn_16_1",
    "wrn_16_2",
    "wrn_22_2",
    "wrn_28_2",
    "wrn_28_10",
    "wrn_40_2",
]
