"""Seeds: streams that do not collide, and numbers that never change."""

import itertools

import pytest
import torch

from ecgan.seeds import (
    NumpyStream,
    TorchStream,
    numpy_generator,
    sample_seed,
    torch_generator,
    variant_seed,
)

# Changing the number would change every training that is resumed.
SHARED = {"DIFFAUGMENT": "CROP"}


def test_no_two_streams_have_one_number():
    for streams in (NumpyStream, TorchStream):
        for (name, number), (other, taken) in itertools.combinations(
            streams.__members__.items(), 2
        ):
            assert number != taken or SHARED.get(other) == name, (name, other)


def test_no_two_streams_give_the_same_numbers():
    drawn = {}
    for stream in NumpyStream:
        for seed, position in itertools.product((0, 1), (0, 1, 10)):
            rng = numpy_generator(seed, stream, position)
            drawn[stream.name, seed, position] = tuple(rng.random(4))
    for stream in TorchStream:
        for seed, position in itertools.product((0, 1), (0, 1, 10)):
            generator = torch_generator(seed, stream, position)
            drawn[stream.name, seed, position] = tuple(torch.rand(4, generator=generator).tolist())
    assert len(set(drawn.values())) == len(drawn)


def test_the_seeds_of_samples_and_of_variants_are_apart_and_safe_integers():
    of = {
        function: {
            function(seed, key, number)
            for seed in (0, 1) for key in ("", "a", "variation") for number in range(50)
        }
        for function in (sample_seed, variant_seed)
    }  # fmt: skip
    assert all(len(seeds) == 300 for seeds in of.values())
    assert not of[sample_seed] & of[variant_seed]
    assert all(0 <= seed < 2**53 for seeds in of.values() for seed in seeds)


@pytest.mark.parametrize(
    ("found", "before"),
    [
        (sample_seed(0, "aachen_000000_000019", 3), 2286783031254185),
        (variant_seed(0, "aachen_000000_000019", 3), 8884524090852530),
        (int(numpy_generator(3, NumpyStream.ORDER, 2).integers(2**31)), 2118591400),
        (int(numpy_generator(3, NumpyStream.STUDENT_ORDER, 1, 2).integers(2**31)), 733974349),
        (torch_generator(3, TorchStream.PREVIEW, 2).initial_seed(), 3947277439339126995),
    ],
)
def test_the_numbers_of_version_0_1(found, before):
    assert found == before
