import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from folovllm.sampling import ops

LAST_UNIFORM = 1 - 2.0**-53  # the greatest that random.Random gives


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TestScale:
    def test_is_the_difference_to_the_peak_by_the_temperature(self):
        logits = normal(3, 70)
        out = torch.full((3, 128), 7.0)
        peaks, factors = logits.amax(-1), torch.tensor([1.0, 2.0, 0.5])
        before = logits.clone()
        scaled = ops.scale(logits, peaks, factors, out)
        expected = (before - before.amax(-1, keepdim=True)) * factors[:, None]
        assert scaled is out
        torch.testing.assert_close(scaled[:, :70], expected)
        assert (scaled[:, 70:] == -torch.inf).all()
        assert torch.equal(logits, before)

    def test_extreme_temperatures_stay_numbers(self):
        logits = torch.tensor([[3.0, 2.0, -torch.inf, 3.0]]).expand(2, -1)
        out = torch.empty(2, 64)
        ops.scale(logits, logits.amax(-1), torch.tensor([1e30, 1e-30]), out)
        weights = out.exp()[:, :4]
        assert weights.tolist() == [[1, 0, 0, 1], [1, 1, 0, 1]]

    def test_half_precision_is_scaled_in_float32(self):
        logits = (normal(2, 64) * 9).bfloat16()
        out = ops.scale(logits, logits.amax(-1), torch.tensor([3.0, 3.0]), torch.empty(2, 64))
        wide = logits.double()
        expected = (wide - wide.amax(-1, keepdim=True)) * 3
        torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-6)


class TestSearch:
    @given(
        st.lists(st.sampled_from([0.0, 0.0, 1.0, 0.25, 3.0]), min_size=1, max_size=300).filter(any),
        st.sampled_from([0.0, 1e-9, 0.3, 0.5, 0.7, 0.999, LAST_UNIFORM]),
    )
    def test_agrees_with_the_running_sum(self, weights, share):
        padded = np.zeros(ops.padded(len(weights)))
        padded[: len(weights)] = weights
        sums = padded.cumsum()
        tensor = torch.tensor(padded[None], dtype=torch.float32)
        target = min(share * sums[-1], np.nextafter(sums[-1], 0))
        expected = int(np.searchsorted(sums, target, side="right"))
        place = int(ops.search(tensor, torch.tensor([share], dtype=torch.float64))[0])
        # Rescaling within the chunk may move a target that is a border itself.
        border = np.abs(sums - target).min() < 1e-12
        assert padded[place] > 0
        assert place == expected or (border and share > 0)

    @given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, LAST_UNIFORM]))
    def test_never_returns_a_weight_of_zero(self, seed, share):
        rng = np.random.default_rng(seed)
        weights = rng.random((4, 6400), np.float32) * (rng.random((4, 6400)) < 0.01)
        weights[:, 3000] += 1e-30
        shares = torch.full((4,), share, dtype=torch.float64)
        places = ops.search(torch.from_numpy(weights.astype(np.float32)), shares)
        assert (weights[np.arange(4), places] > 0).all()

    def test_ends_of_the_range_give_the_first_and_the_last(self):
        weights = torch.zeros(2, 640)
        weights[:, [70, 200, 600]] = torch.tensor([1e-3, 1.0, 1e-3])
        shares = torch.tensor([0.0, LAST_UNIFORM], dtype=torch.float64)
        assert ops.search(weights, shares).tolist() == [70, 600]

    def test_is_accurate_over_a_large_vocabulary(self):
        # In a float32 running sum the tail would be lost: 1 + 1e-8 is 1.
        weights = torch.full((1, 151936), 1e-8)
        weights[0, 0] = 1.0
        total = weights.double().sum()
        wanted = [5, 1000, 70_000, 151_935]
        shares = torch.tensor([1 + (i - 0.5) * 1e-8 for i in wanted], dtype=torch.float64) / total
        places = ops.search(weights.expand(len(wanted), -1), shares)
        assert places.tolist() == pytest.approx(wanted, abs=1)

    def test_inclusive_stops_where_the_share_is_reached(self):
        weights = torch.zeros(3, 128)
        weights[:, :3] = torch.tensor([0.5, 0.25, 0.25])
        shares = torch.tensor([0.5, 0.75, 1.0], dtype=torch.float64)
        assert ops.search(weights, shares, inclusive=True).tolist() == [0, 1, 2]
        assert ops.search(weights, shares[:2].repeat(2)[:3]).tolist() == [1, 2, 1]

    def test_shares_can_be_of_another_total(self):
        weights = torch.zeros(2, 64)
        weights[:, :4] = 1.0
        totals = torch.tensor([4.0, 2.0], dtype=torch.float64)
        shares = torch.tensor([0.6, 0.6], dtype=torch.float64)
        assert ops.search(weights, shares, totals).tolist() == [2, 1]

    def test_rows_of_nan_or_nothing_give_some_place(self):
        weights = torch.ones(3, 128)
        weights[0] = torch.nan
        weights[1] = 0
        places = ops.search(weights, torch.full((3,), 0.5, dtype=torch.float64))
        assert ((places >= 0) & (places < 128)).all()
        assert places[2] == 64


class TestEdits:
    def test_bar(self):
        logits = normal(2, 5)
        expected = logits.clone()
        expected[0, 1] = expected[1, 4] = -torch.inf
        ops.bar(logits, torch.tensor([0, 1]), torch.tensor([1, 4]))
        assert torch.equal(logits, expected)

    def test_allow_only(self):
        logits = normal(3, 5)
        before = logits.clone()
        limited, rows, ids = torch.tensor([0, 2]), torch.tensor([0, 0]), torch.tensor([1, 3])
        ops.allow_only(logits, limited, rows, ids)
        assert logits[0].isfinite().tolist() == [False, True, False, True, False]
        assert torch.equal(logits[0, [1, 3]], before[0, [1, 3]])
        assert torch.equal(logits[1], before[1])
        assert (logits[2] == -torch.inf).all()  # allowed nothing

    @given(
        st.floats(0.01, 10),
        st.floats(-2, 2),
        st.floats(-2, 2),
        st.lists(st.integers(0, 5), min_size=8, max_size=8),
    )
    def test_penalties_agree_with_the_definition(self, repetition, frequency, presence, counts):
        logits = normal(1, 12)[0] * 5
        expected = logits.double().numpy().copy()
        for token, count in enumerate(counts):
            z = expected[token]
            z = z / repetition if z > 0 else z * repetition
            expected[token] = z - frequency * count - presence * (count > 0)
        changed = logits[None].clone()
        penalties = torch.tensor([[repetition], [frequency], [presence]], dtype=torch.float64)
        ids = torch.arange(8)
        ops.penalize(changed, ids * 0, ids, torch.tensor(counts), penalties.expand(-1, 8))
        np.testing.assert_allclose(changed[0].numpy(), expected, rtol=1e-5, atol=1e-5)

    def test_a_tiny_repetition_penalty_makes_no_infinity(self):
        logits = torch.tensor([[2.0, -torch.inf, 1.0]])
        ids = torch.tensor([0, 1])
        penalties = torch.tensor([[1e-300], [0.0], [0.0]], dtype=torch.float64).expand(-1, 2)
        ops.penalize(logits, ids * 0, ids, torch.zeros(2), penalties)
        assert logits[0, 0] == torch.finfo(torch.float32).max
        assert logits[0, 1] == -torch.inf
