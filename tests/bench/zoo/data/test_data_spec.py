"""Reading `NAME[:key=value,...]`."""

from __future__ import annotations

import pytest

from bench.zoo.data import NAMES, DataSpec, parse_spec
from bench.zoo.data.augment import Augmentation
from energy_model.errors import ArgumentError


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"imagefolder", "fake"}))
def test_a_name_alone_is_enough(name):
    assert parse_spec(name) == DataSpec(name=name)


def test_every_key_reaches_its_field():
    spec = parse_spec(
        "mnist:size=32,resize=pad,augment=crop4+flip,normalize=centered,subset=100,batch=64,"
        "split=3,ci=1"
    )
    assert spec == DataSpec(
        name="mnist",
        size=32,
        resize="pad",
        augment=(Augmentation("crop", 4), Augmentation("flip")),
        normalize="centered",
        subset=100,
        batch=64,
        split=3,
        ci=True,
    )
    assert parse_spec("flowers102:workers=5").workers == 5
    assert parse_spec("flowers102:swap=1").swap


def test_names_with_an_argument():
    assert parse_spec("imagefolder:some/where") == DataSpec("imagefolder", "some/where")
    assert parse_spec("imagefolder:some/where:size=64") == DataSpec(
        "imagefolder", "some/where", size=64
    )
    assert parse_spec("fake:3x32x32:10") == DataSpec("fake", "3x32x32:10")
    assert parse_spec("fake:3x32x32:10:batch=8") == DataSpec("fake", "3x32x32:10", batch=8)
    assert parse_spec("fake:3,32,32:10") == DataSpec("fake", "3,32,32:10")


def test_a_callable_is_neither_name_nor_option():
    assert parse_spec("my.package:make.data") == DataSpec("", "my.package:make.data")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mnits", r"unknown data 'mnits'.*Did you mean mnist\?.*cifar10-jpeg.*fake:SHAPE:CLASSES"),
        ("cifar:size=32", "unknown data"),
        ("", "unknown data"),
        ("mnist:colour=1", "'mnist' has no option 'colour'.*size, resize"),
        ("mnist:workers=2", "no option 'workers'"),
        ("imagefolder:a:swap=1", "no option 'swap'"),
        ("flowers102:swap=yes", "swap=yes is not understood.*Write 0 or 1"),
        ("cifar100:ci=1", "no option 'ci'"),
        ("digits:augment=flip", "no option 'augment'"),
        ("fake:1x8x8:2:subset=4", "no option 'subset'"),
        ("mnist:size=32,size=28", "'size' stands twice"),
        ("mnist:size=", "size= is not understood.*from 1"),
        ("mnist:size=0", "from 1"),
        ("mnist:size=-3", "from 1"),
        ("mnist:size=3.5", "from 1"),
        ("mnist:size=99999999999", "from 1"),
        ("mnist:split=-1", "from 0"),
        ("mnist:ci=yes", "0 or 1"),
        ("mnist:resize=nearest", "bilinear, pad"),
        ("mnist:normalize=zscore", "imagenet, cifar"),
        ("mnist:augment=mixup", "'mixup' is not understood.*rotation, crop, flip, cutout"),
        ("mnist:augment=crop+crop4", "'crop' stands twice"),
        ("mnist:augment=flip2", "'flip2' is not understood"),
        ("mnist:augment=", "'' is not understood"),
        ("mnist:foo", r"is not mnist\[:key=value"),
        ("mnist:foo:size=32", r"is not mnist\[:key=value"),
        ("imagefolder", "is not imagefolder:ROOT"),
        ("imagefolder:size=32", "is not imagefolder:ROOT"),
        ("fake", "is not fake:SHAPE:CLASSES"),
    ],
)
def test_what_cannot_be_read_says_what_can(text, words):
    with pytest.raises(ArgumentError, match=f"(?s){words}"):
        parse_spec(text)


def test_changes_are_applied_in_one_order_however_they_are_written():
    assert parse_spec("mnist:augment=cutout+flip+rotation10+crop") == parse_spec(
        "mnist:augment=rotation10+crop+flip+cutout"
    )
    assert parse_spec("mnist:augment=none").augment == ()
