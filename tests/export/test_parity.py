"""Comparison of outputs: what agrees, what does not, and the figures that come of it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from energy_model.errors import ExportError, ParityError
from export.parity import TOLERANCE, check_parity, compare_outputs, open_session, torch_outputs
from passes.inputs import Call

CALL = Call((torch.zeros(2, 3),))


def compare(expected, actual, tolerance=TOLERANCE):
    return compare_outputs(expected, actual, CALL, tolerance, "file.onnx")


def floats(*rows):
    return np.array(rows, dtype=np.float32)


def test_equal_outputs_have_no_error():
    parity = compare([floats([1, -4, 2], [0, 0, 3])], [floats([1, -4, 2], [0, 0, 3])])
    assert parity.max_abs_error == 0.0
    assert parity.scale == 4.0
    assert parity.top1_agreement == 1.0
    assert parity.batch == 2


@given(
    scale=st.floats(1e-3, 1e3),
    error=st.floats(0, 1e-2),
    place=st.integers(0, 5),
)
def test_the_error_is_allowed_relative_to_the_largest_output(scale, error, place):
    expected = np.zeros(6)
    expected[0] = scale
    actual = expected.copy()
    actual[place] -= error * scale
    difference = abs(actual[place] - expected[place])
    if difference <= TOLERANCE * scale:
        parity = compare([expected], [actual])
        assert parity.max_abs_error == difference
        assert parity.scale == scale
    else:
        with pytest.raises(ParityError, match="differs from torch") as caught:
            compare([expected], [actual])
        assert caught.value.max_abs_error == difference


def test_the_error_of_a_later_output_counts():
    good, bad = floats([1, 2]), floats([1, 2.5])
    with pytest.raises(ParityError) as caught:
        compare([good, good], [good, bad])
    assert caught.value.max_abs_error == 0.5


@pytest.mark.parametrize(
    "actual", [[floats([1, 2, 3])], [floats([1], [2])], [], [floats([1, 2]), floats([1, 2])]]
)
def test_other_shapes_are_never_parity(actual):
    with pytest.raises(ParityError, match=r"^file\.onnx: outputs have the shapes") as caught:
        compare([floats([1, 2])], actual)
    assert caught.value.max_abs_error == float("inf")


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_special_values_agree_only_with_themselves(special):
    expected = floats([1, special])
    assert compare([expected], [expected.copy()]).max_abs_error == 0.0
    for other in {np.nan, np.inf, -np.inf, 0.0} - {special}:
        if np.isnan(other) and np.isnan(special):
            continue
        with pytest.raises(ParityError):
            compare([expected], [floats([1, other])])
        with pytest.raises(ParityError):
            compare([floats([1, other])], [expected])


def test_zero_outputs_tolerate_rounding_but_no_values():
    zeros = floats([0, 0])
    assert compare([zeros], [zeros + 1e-11]).scale == 0.0
    with pytest.raises(ParityError):
        compare([zeros], [zeros + 1e-6])


def test_integers_and_empty_outputs_are_compared():
    assert compare([np.array([1, 2])], [np.array([1, 2])]).max_abs_error == 0.0
    assert compare([np.zeros((0, 3))], [np.zeros((0, 3))]).max_abs_error == 0.0
    with pytest.raises(ParityError):
        compare([np.array([1, 2])], [np.array([1, 3])])


def test_top1_counts_rows_of_the_first_output_of_two_dimensions():
    expected, actual = floats([1, 1.00001], [3, 1]), floats([1.00001, 1], [3, 1])
    assert compare([expected], [actual]).top1_agreement == 0.5
    vector = np.ones(4)
    assert compare([vector, expected], [vector, expected]).top1_agreement == 1.0
    for silent in (vector, np.ones((2, 3), dtype=np.int64), np.ones((2, 1)), np.ones((2, 3, 4))):
        assert compare([silent], [silent]).top1_agreement is None


def test_no_rows_agree_without_a_figure():
    empty = np.zeros((0, 3), dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as of a mean over nothing
        assert compare([empty], [empty]).top1_agreement is None


def test_equal_infinities_are_compared_without_a_warning():
    infinite = floats([np.inf, 1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as of inf - inf
        assert compare([infinite], [infinite]).max_abs_error == 0.0


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ExportError, match=r"broken\.onnx: ONNX Runtime refuses"):
        open_session(path)
    with pytest.raises(ExportError, match="refuses"):
        check_parity(path, nn.Linear(3, 2), CALL)


class Samples(nn.Module):
    """Counts its samples in Python, so that the file computes as many and no more."""

    def forward(self, x):
        return torch.stack([x[row] * 2 for row in range(int(x.shape[0]))])


def test_a_file_that_takes_one_batch_alone_is_told(tmp_path):
    path = tmp_path / "fixed.onnx"
    example = torch.zeros(2, 3)
    torch.onnx.export(Samples().eval(), (example,), str(path), dynamo=True, verbose=False)
    assert check_parity(path, Samples(), Call((example,))).max_abs_error == 0.0
    with pytest.raises(ExportError, match="cannot run the file at batch 3: ") as caught:
        check_parity(path, Samples(), Call((torch.zeros(3, 3),)))
    assert "reads the batch size" in caught.value.remedy


class OfFour(nn.Module):
    """Takes four samples and no other number."""

    def forward(self, x):
        return x.view(4, 3) * 2


def test_a_model_that_takes_one_batch_alone_is_told(tmp_path):
    with pytest.raises(ExportError, match="OfFour: the model fails at batch 3: shape") as caught:
        torch_outputs(OfFour(), Call((torch.zeros(3, 3),)))
    assert "for any batch" in caught.value.remedy
    assert len(torch_outputs(OfFour(), Call((torch.zeros(4, 3),)))) == 1
