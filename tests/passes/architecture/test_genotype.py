from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_model.errors import ArgumentError
from passes.architecture.genotype import Genotype
from passes.architecture.policy import Policy

names = st.text(max_size=8)
genotypes = st.builds(
    Genotype.of,
    st.lists(names, max_size=4),
    st.dictionaries(names, st.integers(1, 1000), max_size=4),
    st.lists(st.tuples(names, names), max_size=4),
)


@given(genotypes)
def test_json_gives_the_genotype_back(genotype):
    again = Genotype.from_dict(json.loads(json.dumps(genotype.to_dict())))
    assert again == genotype
    assert again.digest == genotype.digest


@given(genotypes, genotypes)
def test_equal_digests_are_equal_genotypes(a, b):
    assert (a.digest == b.digest) == (a == b)


def test_order_and_repetition_do_not_matter():
    a = Genotype.of(["y", "x", "y"], {"g": 2, "f": 1}, [("b", "c"), ("a", "c")])
    b = Genotype(("x", "y"), (("f", 1), ("g", 2)), (("a", "c"), ("b", "c")))
    assert a == b
    assert hash(a) == hash(b)


def test_the_digest_is_that_of_every_process_and_version():
    known = hashlib.sha256(b'{"removed":["\\u00e9"],"skips":[],"widths":[]}').hexdigest()
    assert Genotype.of(["é"]).digest == known
    code = "from passes.architecture.genotype import Genotype; print(Genotype.of(['é']).digest)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == known


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (None, "not an object"),
        ([], "not an object"),
        ({}, "has the fields"),
        ({"removed": [], "widths": [], "skips": [], "bits": []}, "has the fields"),
        ({"removed": "ab", "widths": [], "skips": []}, "not a list"),
        ({"removed": [1], "widths": [], "skips": []}, "no tuple of names"),
        ({"removed": ["b", "a"], "widths": [], "skips": []}, "not sorted"),
        ({"removed": ["a", "a"], "widths": [], "skips": []}, "twice"),
        ({"removed": [], "widths": [["a", 1.5]], "skips": []}, "no pair"),
        ({"removed": [], "widths": [["a", True]], "skips": []}, "no pair"),
        ({"removed": [], "widths": [["a", 0]], "skips": []}, "keeps 0 units"),
        ({"removed": [], "widths": [["a", 1], ["a", 2]], "skips": []}, "twice"),
        ({"removed": [], "widths": {"a": 1}, "skips": []}, "not a list"),
        ({"removed": [], "widths": [], "skips": [["a"]]}, "no pair"),
        ({"removed": [], "widths": [], "skips": [["a", 3]]}, "no pair"),
        ({"removed": [], "widths": [], "skips": [3]}, "no pair"),
    ],
)
def test_bad_data_is_refused(values, words):
    with pytest.raises(ArgumentError, match=words):
        Genotype.from_dict(values)


@pytest.mark.parametrize(
    "options",
    [
        {"parts": ("layer",)},
        {"parts": ("unit", "unit")},
        {"parts": "unit"},
        {"widths": "all"},
        {"skips": "dense"},
        {"importance": "l3"},
        {"doubled": 1},
    ],
)
def test_bad_policies_are_refused(options):
    with pytest.raises(ArgumentError, match="policy"):
        Policy(**options)
