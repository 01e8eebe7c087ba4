"""Streams of random numbers: the right bits, the right laws, and nothing they may not depend on."""

import hashlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from robustssm.core import rng
from robustssm.core.rng import Noise, Streams, global_stream

MASK = (1 << 64) - 1
ints = st.integers(min_value=0, max_value=MASK)


def mix(z: int) -> int:
    """SplitMix64's finaliser over unbounded integers, as steele2014splittable prints it."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def splitmix64(seed: int, count: int) -> list[int]:
    return [mix((seed + (c + 1) * 0x9E3779B97F4A7C15) & MASK) for c in range(count)]


def stream_key(*parts: str | int) -> int:
    text = "/".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def unit(bits: int) -> float:
    return ((bits >> 12) + 0.5) / 2**52


# --- bits -------------------------------------------------------------------------------------


def test_the_oracle_gives_the_published_first_values():
    assert splitmix64(1234567, 5) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(words=st.lists(ints, min_size=1, max_size=50))
def test_mixing_is_that_of_unbounded_integers(words):
    mixed = rng._mix(torch.tensor([signed(w) for w in words], dtype=torch.int64))
    assert mixed.tolist() == [signed(mix(w)) for w in words]


@given(seed=st.integers(), path=st.lists(st.text(max_size=5) | st.integers(), max_size=3))
def test_a_stream_is_splitmix64_from_its_hashed_key(seed, path):
    noise = Noise(seed).fork(*path)
    first, second = noise.uniform(3, 2, dtype=torch.float64), noise.uniform(4, dtype=torch.float64)
    for draw, values in ((1, first), (2, second)):
        bits = splitmix64(stream_key(seed, *path, draw), values.numel())
        assert values.flatten().tolist() == [unit(b) for b in bits]


def test_integers_and_orders_come_from_the_same_bits():
    noise = Noise(8)
    integers, order = noise.integers(30, high=7), noise.permutation(30)
    first, second = (splitmix64(stream_key(8, draw), 30) for draw in (1, 2))
    assert integers.tolist() == [(bits >> 11) % 7 for bits in first]
    assert order.tolist() == sorted(range(30), key=lambda i: signed(second[i]))


def test_every_example_has_a_splitmix64_stream_of_its_own():
    examples = [0, 7, 123456789]
    values = Noise(5, torch.tensor(examples)).uniform(3, 2, 2, dtype=torch.float64)
    key = stream_key(5, 1)
    for example, row in zip(examples, values, strict=True):
        own = mix((mix((example * 0x9E3779B97F4A7C15 + key) & MASK) + key) & MASK)
        assert row.flatten().tolist() == [unit(b) for b in splitmix64(own, 4)]


@pytest.mark.parametrize("bits", [0, -1, (1 << 63) - 1, -(1 << 63)])
def test_a_unit_draw_is_strictly_inside_whatever_the_bits(monkeypatch, bits):
    monkeypatch.setattr(Noise, "_bits", lambda *_: torch.tensor([bits]))
    value = Noise(0).uniform(1, dtype=torch.float64).item()
    assert 0.0 < value < 1.0
    assert math.isfinite(Noise(0).normal(1, dtype=torch.float64).item())


# --- laws -------------------------------------------------------------------------------------

N = 40_000
STANDARD = stats.norm()


@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_uniform_and_normal_follow_their_laws(per_example, seed):
    """Kolmogorov-Smirnov; the seeds are fixed, so a p-value is a constant and not a lottery."""
    noise = Noise(seed, torch.arange(200) if per_example else None)
    u = noise.uniform(200, N // 200, low=-2.0, high=3.0, dtype=torch.float64).flatten()
    z = noise.normal(200, N // 200, std=1.5, dtype=torch.float64).flatten()
    assert stats.kstest(u.numpy(), stats.uniform(-2, 5).cdf).pvalue > 1e-3
    assert stats.kstest(z.numpy(), stats.norm(scale=1.5).cdf).pvalue > 1e-3


def test_moments_are_within_five_standard_errors():
    noise = Noise(11)
    u, z = (draw(N, dtype=torch.float64) for draw in (noise.uniform, noise.normal))
    assert abs(u.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / N)
    assert abs(u.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / N)
    assert abs(z.mean()) < 5 * math.sqrt(1 / N)
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / N)
    assert abs((z**3).mean()) < 5 * math.sqrt(15 / N)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / N)


def test_integers_signs_and_permutations_are_even():
    noise = Noise(3)
    counts = torch.bincount(noise.integers(N, high=7), minlength=7)
    assert counts.numel() == 7
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    signs = noise.signs(N)
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 5 / math.sqrt(N)
    firsts = torch.bincount(torch.stack([noise.permutation(5)[0] for _ in range(2000)]))
    assert stats.chisquare(firsts.numpy()).pvalue > 1e-3
    assert sorted(noise.permutation(100).tolist()) == list(range(100))


def test_streams_are_uncorrelated():
    """Neighbours in every direction: seeds, draws, forks, examples, and lags within a stream."""
    shared = Noise(0)
    rows = {
        "seed": Noise(1).normal(N),
        "first": shared.normal(N),
        "second": shared.normal(N),
        "fork": shared.fork("a").normal(N),
        "fork of a number": shared.fork(1).normal(N),
        "fork of a word": shared.fork("1").normal(N),
        "fork of a fork": shared.fork("a").fork("b").normal(N),
    }
    each = Noise(0, torch.arange(6)).normal(6, N)
    rows |= {f"example {i}": row for i, row in enumerate(each)}
    first = rows["first"]
    rows |= {f"lag {lag}": first.roll(lag) for lag in (1, 2, 3, 8, 64)}
    correlation = torch.corrcoef(torch.stack(list(rows.values())))
    off = correlation - torch.eye(len(rows))
    assert off.abs().max() < 5 / math.sqrt(N)


# --- what a stream may not depend on ----------------------------------------------------------


def draws(noise: Noise, rows: int) -> torch.Tensor:
    return torch.cat(
        [
            noise.uniform(rows, 3),
            noise.normal(rows, 2, 2).flatten(1),
            noise.integers(rows, 2, high=1000).float(),
            noise.signs(rows, 2),
        ],
        dim=1,
    )


@given(
    examples=st.lists(st.integers(0, 10**6), min_size=1, max_size=8, unique=True),
    data=st.data(),
)
def test_a_row_depends_on_its_example_alone(examples, data):
    everyone = torch.tensor(examples)
    all_rows = draws(Noise(4, everyone), len(examples))
    some = torch.tensor(data.draw(st.permutations(range(len(examples)))))
    some = some[: data.draw(st.integers(1, len(examples)))]
    assert torch.equal(draws(Noise(4, everyone[some]), len(some)), all_rows[some])


@given(
    keep=st.lists(st.booleans(), min_size=5, max_size=5).filter(any),
    before=st.integers(0, 3),
)
def test_select_goes_on_where_the_rows_were(keep, before):
    mask = torch.tensor(keep)
    noise, reference = (Noise(9, torch.arange(5)) for _ in range(2))
    for _ in range(before):
        noise.normal(5, 4)
        reference.normal(5, 4)
    by_mask, by_index = noise.select(mask), noise.select(mask.nonzero().squeeze(1))
    rows = int(mask.sum())
    expected = reference.normal(5, 4)[mask]
    assert torch.equal(by_mask.normal(rows, 4), expected)
    assert torch.equal(by_index.normal(rows, 4), expected)
    assert torch.equal(noise.normal(5, 4)[mask], expected), "selecting draws nothing"


def test_select_of_a_shared_noise_is_an_equal_noise():
    noise = Noise(2)
    noise.uniform(3)
    chosen = noise.select(torch.tensor([True, False]))
    assert not chosen.per_example
    assert torch.equal(chosen.uniform(4), noise.uniform(4))


def test_a_fork_is_the_same_whenever_it_is_made_and_keeps_the_examples():
    noise = Noise(1, torch.tensor([3, 5]))
    early = noise.fork("a", 2).normal(2, 3)
    noise.normal(2, 3)
    assert torch.equal(noise.fork("a", 2).normal(2, 3), early)
    assert torch.equal(noise.fork("a").fork(2).normal(2, 3), early)
    assert noise.fork("a").per_example
    assert torch.equal(noise.fork("a", 2).select(torch.tensor([1])).normal(1, 3), early[1:])


def test_forking_takes_no_draw():
    one, two = Noise(1), Noise(1)
    one.fork("child").normal(3)
    assert torch.equal(one.normal(3), two.normal(3))


def test_successive_draws_and_different_names_differ():
    noise = Noise(0)
    values = [noise.uniform(4), noise.uniform(4), noise.fork("a").uniform(4)]
    values += [noise.fork("b").uniform(4), noise.fork(1).uniform(4), noise.fork("1").uniform(4)]
    assert len({tuple(v.tolist()) for v in values}) == len(values)


def test_the_streams_of_a_run_hang_on_seed_and_path():
    indices = torch.tensor([8, 2])
    runs = Streams(3), Streams(3), Streams(4)
    order = [run.noise("order", 1).permutation(50) for run in runs]
    attack = [run.examples("attack", indices=indices).normal(2, 4) for run in runs]
    for same, again, other in (order, attack):
        assert torch.equal(same, again)
        assert not torch.equal(same, other)
    assert runs[0].seed == 3
    assert not torch.equal(order[0], runs[0].noise("order", 2).permutation(50))


# --- shapes, dtypes, refusals -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["uniform", "normal", "signs"])
def test_like_gives_shape_dtype_and_device(dtype, name):
    like = torch.zeros(3, 2, dtype=dtype, device="cpu")
    draw = getattr(Noise(0), name)(like=like)
    assert (draw.shape, draw.dtype, draw.device) == (like.shape, like.dtype, like.device)
    assert draw.isfinite().all()


def test_what_is_given_goes_before_like():
    like = torch.zeros(3, 2)
    assert Noise(0).uniform(5, like=like).shape == (5,)
    assert Noise(0).uniform(like=like, dtype=torch.float64).dtype == torch.float64
    assert Noise(0).normal(like=like, device="meta").device.type == "meta"
    assert Noise(0).normal(2).dtype == torch.float32
    assert Noise(0).uniform().shape == ()
    assert Noise(0).integers(2, 2, high=3).dtype == torch.int64


def test_float32_is_the_rounded_float64():
    single, double = (Noise(6).normal(50, dtype=d) for d in (torch.float32, torch.float64))
    assert torch.equal(single, double.to(torch.float32))


@pytest.mark.parametrize("shape", [(), (2,), (4, 3)])
def test_rows_must_match_the_examples(shape):
    with pytest.raises(ValueError, match=r"A noise of 3 examples must draw 3 rows; got shape"):
        Noise(0, torch.arange(3)).uniform(*shape)


@pytest.mark.parametrize("high", [0, -3])
def test_integers_need_something_to_draw_from(high):
    with pytest.raises(ValueError, match=rf"`high` must be at least 1; got {high}\."):
        Noise(0).integers(3, high=high)


def test_an_order_is_not_per_example():
    with pytest.raises(ValueError, match="one stream"):
        Noise(0, torch.arange(3)).permutation(3)


def test_seeds_are_63_bit_and_successive():
    noise = Noise(0)
    seeds = [noise.seed() for _ in range(50)]
    assert len(set(seeds)) == 50
    assert all(0 <= s < 1 << 63 for s in seeds)
    assert max(seeds) > 1 << 61


# --- other people's generators ----------------------------------------------------------------


def test_global_stream_is_a_function_of_its_noise_and_restores_the_state():
    before = torch.get_rng_state()
    weights = []
    for seed in (0, 0, 1):
        with global_stream(Noise(seed)):
            weights.append(nn.Linear(4, 4).weight)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_global_stream_restores_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"), global_stream(Noise(0)):
        torch.rand(3)
        raise RuntimeError("inside")
    assert torch.equal(torch.get_rng_state(), before)


def test_global_stream_leaves_accelerators_alone(monkeypatch):
    touched = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", touched.append)
    monkeypatch.setattr(torch.cuda, "manual_seed", touched.append)
    with global_stream(Noise(0)):
        pass
    assert touched == []


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    draws(Noise(0), 3)
    Noise(0).permutation(5)
    Noise(0).seed()
    assert torch.equal(torch.get_rng_state(), before)
