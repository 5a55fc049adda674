"""One seed, and a stream for each role, input and chunk: distinct keys give distinct draws, equal keys equal ones."""

import itertools

import numpy as np
import pytest
import torch
from scipy.special import ndtr

from calipers.errors import UsageError
from calipers.randomness import Draws, Role, Stream, check_seed


def _whole(stream: Stream, chunk: int, count: int = 4) -> list[int]:
    drawn = torch.empty(count, dtype=torch.int64).random_(0, 2**60, generator=stream.generator(chunk))
    return [int(value) for value in drawn]


def _normal(stream: Stream, chunk: int, count: int) -> torch.Tensor:
    return torch.empty(count).normal_(generator=stream.generator(chunk))


def test_a_plain_cpu_seed_keeps_32_bits_only() -> None:
    plain = torch.Generator().manual_seed(1)
    wrapped = torch.Generator().manual_seed(1 + 2**32)
    assert torch.equal(plain.get_state()[24:], wrapped.get_state()[24:])
    assert torch.equal(torch.rand(8, generator=plain), torch.rand(8, generator=wrapped))


def test_keys_that_agree_in_32_bits_do_not_share_draws() -> None:
    one, other = Stream(1, Role.ESTIMATE, 0), Stream(1 + 2**32, Role.ESTIMATE, 0)
    assert _whole(one, 0) != _whole(other, 0)
    far = Stream(1, Role.ESTIMATE, 2**32)
    assert _whole(one, 0) != _whole(far, 0)
    assert _whole(one, 0) != _whole(one, 2**32)


def test_the_state_differs_in_all_of_its_words() -> None:
    first = Stream(0, Role.ESTIMATE, 0).generator(0).get_state()
    second = Stream(0, Role.ESTIMATE, 0).generator(1).get_state()
    words = first.numpy()[24 : 24 + 624 * 8].view("<u8") ^ second.numpy()[24 : 24 + 624 * 8].view("<u8")
    assert (words != 0).all()
    assert words.max() < 2**32


def test_distinct_keys_give_distinct_draws() -> None:
    keys = list(itertools.product((0, 1, 10, 2**64 - 1), Role, (0, 1, 10, 11), (0, 1, 10, 110)))
    drawn = {tuple(_whole(Stream(seed, role, index), chunk)) for seed, role, index, chunk in keys}
    assert len(drawn) == len(keys)


def test_neighbouring_digits_of_a_key_do_not_run_together() -> None:
    assert (
        Stream(1, Role.JUDGE, 11).key(1)
        != Stream(11, Role.JUDGE, 1).key(1)
        != Stream(1, Role.JUDGE, 1).key(11)
    )


def test_equal_keys_give_equal_draws_whatever_was_drawn_before() -> None:
    stream = Stream(3, Role.SELECT, 5)
    first = _normal(stream, 7, 1000)
    torch.randn(3)
    _normal(stream, 6, 17)
    assert torch.equal(first, _normal(Stream(3, Role.SELECT, 5), 7, 1000))


def test_the_global_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    _normal(Stream(0, Role.SEARCH, 0), 0, 100)
    assert torch.equal(before, torch.get_rng_state())


def test_the_first_draws_of_a_seed_do_not_change_between_versions() -> None:
    assert _whole(Stream(1, Role.ESTIMATE, 0), 0) == [
        31484194735240329,
        972337695306331550,
        966026101828106160,
        1048985278566863409,
    ]
    drawn = _normal(Stream(1, Role.ESTIMATE, 0), 0, 4).tolist()
    assert drawn == pytest.approx([-2.4564, 0.0703, -0.0031, 1.1114], abs=1e-4)


def test_normal_draws_of_many_chunks_are_normal() -> None:
    stream = Stream(20, Role.ESTIMATE, 3)
    drawn = np.sort(torch.cat([_normal(stream, chunk, 1000) for chunk in range(200)]).double().numpy())
    count = len(drawn)
    assert abs(drawn.mean()) < 5 / np.sqrt(count)
    assert abs(drawn.var() - 1) < 5 * np.sqrt(2 / count)
    ranks = np.arange(count + 1) / count
    distance = max((ranks[1:] - ndtr(drawn)).max(), (ndtr(drawn) - ranks[:-1]).max())
    assert distance < np.sqrt(np.log(2 / 1e-6) / (2 * count))


@pytest.mark.parametrize("neighbour", ["chunk", "index", "role", "seed"])
def test_neighbouring_streams_are_not_correlated(neighbour: str) -> None:
    base = Stream(0, Role.ESTIMATE, 0)
    pairs = {
        "chunk": [(base, chunk, base, chunk + 1) for chunk in range(100)],
        "index": [(Stream(0, Role.JUDGE, i), 0, Stream(0, Role.JUDGE, i + 1), 0) for i in range(100)],
        "role": [(Stream(0, Role.SELECT, i), 0, Stream(0, Role.ESTIMATE, i), 0) for i in range(100)],
        "seed": [(Stream(i, Role.SELECT, 0), 0, Stream(i + 1, Role.SELECT, 0), 0) for i in range(100)],
    }[neighbour]
    products = [
        float((_normal(one, c, 1000).double() * _normal(other, d, 1000).double()).sum())
        for one, c, other, d in pairs
    ]
    # a sum of 100 000 products of independent normals has a standard deviation of 316
    assert abs(sum(products)) < 5 * np.sqrt(100 * 1000)


def test_the_first_draws_of_many_chunks_are_normal_too() -> None:
    stream = Stream(5, Role.ESTIMATE, 0)
    first = np.sort(np.array([float(_normal(stream, chunk, 16)[0]) for chunk in range(3000)]))
    ranks = np.arange(len(first) + 1) / len(first)
    distance = max((ranks[1:] - ndtr(first)).max(), (ndtr(first) - ranks[:-1]).max())
    assert distance < np.sqrt(np.log(2 / 1e-6) / (2 * len(first)))


def test_a_batch_of_draws_is_one_stream_an_input() -> None:
    draws = Draws(4, Role.JUDGE, (7, 3))
    assert len(draws) == 2
    assert draws[1] == Stream(4, Role.JUDGE, 3)


def test_folded_draws_are_of_the_same_inputs_and_share_nothing() -> None:
    draws = Draws(4, Role.SEARCH, (7, 3))
    made = [
        draws,
        *(draws.fold(number) for number in (-1, 0, 1, 2, 11)),
        draws.fold(1).fold(1),
        draws.fold(1).fold(0),
    ]
    made += [Draws(5, Role.SEARCH, (7, 3)).fold(1), Draws(4, Role.JUDGE, (7, 3)).fold(1)]
    assert all(folded.indices == (7, 3) for folded in made)
    firsts = {tuple(_whole(folded[row], 0)) for folded in made for row in range(2)}
    assert len(firsts) == 2 * len(made)
    assert draws.fold(2) == draws.fold(2)
    assert all(check_seed(folded.seed) == folded.seed for folded in made)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_beyond_64_bits_is_refused(seed: int) -> None:
    with pytest.raises(UsageError, match=f"seed is {seed}"):
        check_seed(seed)


def test_every_seed_of_64_bits_is_kept() -> None:
    assert [check_seed(seed) for seed in (0, 2**64 - 1)] == [0, 2**64 - 1]


@pytest.mark.gpu
def test_streams_on_cuda_repeat_and_differ() -> None:
    stream = Stream(1, Role.ESTIMATE, 0)
    first, again, other = (
        torch.empty(1000, device="cuda").normal_(generator=stream.generator(chunk, "cuda"))
        for chunk in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert abs(float((first * other).mean())) < 5 / np.sqrt(1000)
