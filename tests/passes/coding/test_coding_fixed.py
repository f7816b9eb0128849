from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from passes.coding.cells import Layout, code_by_kernels
from passes.coding.fixed import COST, COUNTS, HAZARD, LIMIT, LN, ONE, SQUASH, UNIT, log2
from passes.coding.mixing import EVENT, Mixer, weight
from passes.coding.range_coder import Decoder, Encoder, Meter


def test_logarithms_are_right_to_the_last_place() -> None:
    values = np.array([1, 2, 3, 5, 1000, 65535, 65536, 2**31, 2**32 - 1], np.uint64)
    exact = np.floor(np.log2(values.astype(np.float64)) * 2**16)
    assert np.abs(log2(values) - exact).max() <= 1
    assert log2(np.array([1, 2, 4, 2**31], np.uint64)).tolist() == [0, 1 << 16, 2 << 16, 31 << 16]


def test_tables_agree_with_floating_point() -> None:
    p = np.arange(1, ONE + 1)
    assert np.abs(np.array(COST[1:]) / ONE - (16 - np.log2(p))).max() < 2e-5
    counts = np.arange(1, COUNTS + 1)
    assert np.abs(np.array(LN[1:]) - UNIT * np.log(counts)).max() < 0.6
    x = np.arange(-LIMIT, LIMIT + 1) / UNIT
    assert np.abs(np.array(SQUASH) - ONE / (1 + np.exp(-x))).max() <= 0.5
    assert min(SQUASH) >= 1
    assert max(SQUASH) <= ONE - 1
    x = x[LIMIT + 1 :]
    assert np.abs(np.array(HAZARD[1:]) + UNIT * np.log(1 - np.exp(-x))).max() < 1


def test_tables_are_the_same_numbers_everywhere() -> None:
    whole = hashlib.sha256(repr((COST, list(LN), SQUASH, HAZARD)).encode()).hexdigest()
    assert whole[:16] == "7a0f5f449b9fac1c"


def test_a_mixer_learns_which_context_matters() -> None:
    generator = np.random.default_rng(0)
    signal = generator.integers(0, 2, 4000).tolist()
    bits = [int(s if generator.random() < 0.95 else 1 - s) for s in signal]
    costs = {}
    for name, contexts in {"useful": signal, "useless": [0] * 4000}.items():
        meter = Meter()
        mixer = Mixer(2, [weight(1.0), weight(0.5)], [2])
        for bit, context in zip(bits, contexts, strict=True):
            mixer.code(meter, 0, [context], bit)
        costs[name] = meter.total
    entropy = -4000 * (0.95 * math.log2(0.95) + 0.05 * math.log2(0.05))
    assert costs["useful"] < 1.08 * entropy
    assert costs["useless"] > 3900


def test_a_mixer_without_contexts_reaches_the_entropy() -> None:
    generator = np.random.default_rng(1)
    for density in (0.003, 0.05, 0.5):
        bits = (generator.random(30_000) < density).astype(int)
        share = bits.mean()
        meter, mixer = Meter(), Mixer(0, [weight(1.0)], [])
        for bit in bits.tolist():
            mixer.code(meter, 0, [], bit)
        entropy = -len(bits) * (share * math.log2(share) + (1 - share) * math.log2(1 - share))
        assert meter.total < 1.02 * entropy + 32


def test_counts_are_halved_before_they_leave_the_table() -> None:
    mixer, meter = Mixer(1, [weight(1.0), weight(0.5)], [2]), Meter()
    for _ in range(3 * COUNTS // EVENT):
        mixer.code(meter, 0, [0], 1)
    assert mixer.ones[0] + 2 * EVENT < COUNTS
    assert meter.total < 16


@pytest.mark.parametrize("full", [False, True])
def test_encoder_and_decoder_mix_alike(full: bool) -> None:
    generator = np.random.default_rng(2)
    layout = Layout(6, 5, 9, 3)
    cells = bytearray((generator.random(270) < 0.2).astype(np.uint8).tobytes())
    for row in range(6):
        cells[row * 45 + 44] = 1
    encoder = Encoder()
    code_by_kernels(encoder, bytearray(cells), layout, full_rows=full)
    read = bytearray(270)
    code_by_kernels(Decoder(encoder.finish()), read, layout, full_rows=full)
    assert read == cells
