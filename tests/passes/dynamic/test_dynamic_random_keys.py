from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.dynamic.random_keys import key_of, keys_at, normals, uniform_indices, uniform_keys

WORD = (1 << 64) - 1
SIGNED = st.integers(-(1 << 63), (1 << 63) - 1)


def splitmix(seed, n):
    """SplitMix64 as published, in whole numbers."""
    numbers = []
    for _ in range(n):
        seed = (seed + 0x9E3779B97F4A7C15) & WORD
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
        numbers.append(z ^ (z >> 31))
    return numbers


def test_the_published_numbers_of_splitmix64():
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix(1234567, 5) == published
    assert [k & WORD for k in uniform_keys(1234567, 5).tolist()] == published


def test_normals_are_box_and_muller_of_the_two_halves_of_a_key():
    for key, pair in zip(splitmix(77, 500), normals(77, 1000).reshape(-1, 2), strict=True):
        radius = math.sqrt(-2 * math.log(((key >> 32) + 1) / 2**32))
        angle = 2 * math.pi * (key & (2**32 - 1)) / 2**32
        expected = torch.tensor([radius * math.cos(angle), radius * math.sin(angle)])
        assert torch.allclose(pair, expected, rtol=2**-23, atol=1e-12)


@settings(max_examples=20)
@given(key=SIGNED, n=st.integers(0, 20), start=st.integers(0, 1 << 40))
def test_keys_are_those_of_splitmix64_from_any_start(key, n, start):
    found = [k & WORD for k in uniform_keys(key, n, start=start).tolist()]
    assert found == splitmix((key + start * 0x9E3779B97F4A7C15) & WORD, n)
    counters = torch.tensor([start + 5, start, start + 3])
    assert torch.equal(keys_at(key, counters), uniform_keys(key, 6, start=start)[[5, 0, 3]])


def test_golden_keys_and_normals():
    assert key_of(0, 0, "") == 75380312359882322
    assert key_of(3, 17, "layer1.0.conv2") == -3066662880366412951
    expected = [-0.4170379042625427, -2.0459749698638916, -1.2085767984390259, 1.877285122871399]
    assert normals(key_of(1, 2, "fc"), 4).tolist() == expected


def test_keys_of_names_differ_and_do_not_run_together():
    names = [(s, e, n) for s in (-1, 0, 1, 11) for e in (-1, 0, 1, 11) for n in ("", "1", "1/1")]
    assert len({key_of(*name) for name in names}) == len(names)
    assert all(-(1 << 63) <= key_of(*name) < 1 << 63 for name in names)
    assert key_of(True, False, "x") == key_of(1, 0, "x")


def test_keys_of_a_stream_differ_and_no_global_generator_moves():
    before = torch.get_rng_state()
    keys = uniform_keys(9, 100_000)
    normals(9, 10)
    assert len(keys.unique()) == 100_000
    assert torch.equal(torch.get_rng_state(), before)


def test_bits_of_keys_are_even_and_independent_of_their_neighbours():
    keys = uniform_keys(key_of(0, 0, "bits"), 20_000)
    bits = (keys[:, None] >> torch.arange(64)) & 1
    assert (bits.double().mean(0) - 0.5).abs().max() < 5 * 0.5 / math.sqrt(20_000)
    # One step of the counter, or another stream, turns over half of the bits.
    turned = (bits[1:] ^ bits[:-1]).double().mean(0)
    other = (uniform_keys(key_of(0, 1, "bits"), 20_000)[:, None] >> torch.arange(64)) & 1
    for share in (turned, (bits ^ other).double().mean(0)):
        assert (share - 0.5).abs().max() < 5 * 0.5 / math.sqrt(19_999)


@pytest.mark.parametrize("below", [1, 7, 1000, 1 << 40])
def test_indices_are_in_range_and_even(below):
    index = uniform_indices(4, 20_000, below)
    assert int(index.min()) >= 0 and int(index.max()) < below
    assert torch.equal(index[100:200], uniform_indices(4, 100, below, start=100))
    share = index.double().mean() / below + 0.5 / below
    assert abs(share - 0.5) < 5 * math.sqrt(1 / 12 / 20_000)


def test_normals_have_the_moments_and_the_tails_of_a_normal():
    z = normals(key_of(0, 0, "noise"), 200_001)
    assert z.dtype == torch.float32 and z.shape == (200_001,)
    z = z.double()
    assert abs(z.mean()) < 5 / math.sqrt(200_000)
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / 200_000)
    assert abs((z**3).mean()) < 5 * math.sqrt(15 / 200_000)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / 200_000)
    for bound in (0.5, 1.0, 2.0, 3.0):
        share = math.erfc(bound / math.sqrt(2))
        spread = 5 * math.sqrt(share * (1 - share) / 200_000)
        assert abs((z.abs() > bound).double().mean() - share) < spread
    pairs = z[:-1].reshape(-1, 2)  # from one key
    assert abs((pairs[:, 0] * pairs[:, 1]).mean()) < 5 / math.sqrt(100_000)
    assert abs(((pairs[:, 0] ** 2 - 1) * (pairs[:, 1] ** 2 - 1)).mean()) < 5 * 2 / math.sqrt(1e5)


def test_fewer_normals_are_a_prefix_of_more():
    every = normals(3, 9)
    for n in range(10):
        assert torch.equal(normals(3, n), every[:n])
