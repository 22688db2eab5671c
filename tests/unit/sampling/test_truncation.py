import numpy as np
import pytest
import torch
from hypothesis import assume, given, strategies as st

from folovllm.sampling import ops
from folovllm.sampling.device import CpuOps, GpuOps
from folovllm.sampling.truncation import Limits, cutoffs, draw_truncated

CPU = CpuOps()
LAST_UNIFORM = 1 - 2.0**-53  # the greatest that random.Random gives
LARGE = 64 * 64 * 4  # from here on only candidates are sorted


def limits(vocab: int, *rows: tuple[float, int, float]) -> Limits:
    min_p, top_k, top_p = zip(*rows, strict=True)
    return Limits(
        torch.tensor(min_p).log(),
        torch.tensor([vocab if k == -1 else k for k in top_k]),
        torch.tensor(top_p, dtype=torch.float64),
        vocab,
    )


def kept(x: np.ndarray, min_p: float, top_k: int, top_p: float) -> tuple[np.ndarray, float]:
    """What is kept of scaled logits; and how far top_p is from a border of the running sum."""
    p = np.exp(x)
    keep = p >= min_p * p.max()
    if top_k != -1:
        keep &= x >= np.sort(np.where(keep, x, -np.inf))[::-1][min(top_k, len(x)) - 1]
    if top_p == 1:
        return keep, 1.0
    p = np.where(keep, p, 0) / p[keep].sum()
    ordered = np.sort(p)[::-1]
    sums = ordered.cumsum()
    last = min(int((sums < top_p).sum()), len(x) - 1)
    return keep & (p >= ordered[last]), float(np.abs(sums - top_p).min())


def scaled(logits: torch.Tensor) -> torch.Tensor:
    rows, vocab = logits.shape
    out = torch.empty(rows, ops.padded(vocab))
    return ops.scale(logits, logits.amax(-1), torch.ones(rows), out)


def drawn(x: torch.Tensor, limit: Limits, count: int = 2000) -> set[int]:
    uniforms = torch.arange(count, dtype=torch.float64) / count
    many = limit.of(torch.zeros(count, dtype=torch.int64))
    return set(draw_truncated(x.expand(count, -1), many, uniforms, CPU).tolist())


class TestCutoffs:
    @given(
        st.lists(st.integers(-24, 0), min_size=1, max_size=90),
        st.sampled_from([0.0, 0.013, 0.2, 1.0]),
        st.sampled_from([-1, 1, 2, 5, 40, 200]),
        st.floats(0.01, 1.0),
    )
    def test_agree_with_the_definition(self, quarters, min_p, top_k, top_p):
        logits = torch.tensor([quarters]) / 4  # ties
        x = scaled(logits)
        expected, margin = kept(x[0, : len(quarters)].double().numpy(), min_p, top_k, top_p)
        assume(margin > 1e-5)
        ordered = x.sort(-1, descending=True).values
        cut = cutoffs(ordered, limits(len(quarters), (min_p, top_k, top_p)))
        assert (x[0, : len(quarters)] >= cut.final[0]).tolist() == expected.tolist()
        assert cut.found[0]

    def test_rows_have_their_own(self):
        x = scaled(torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(4, -1))
        limit = limits(4, (0, -1, 0.6), (0, 1, 1.0), (0.2, -1, 1.0), (0, -1, 1.0))
        final = cutoffs(x.sort(-1, descending=True).values, limit).final
        assert (x[:, :4] >= final[:, None]).sum(-1).tolist() == [2, 1, 3, 4]

    @pytest.mark.parametrize(
        ("min_p", "top_k", "top_p", "expected"),
        [
            (0.0, 2, 0.6, 1),  # of 0.5 and 0.3 renormalised, 0.625 is enough
            (0.0, -1, 0.6, 2),
            (0.5, -1, 0.6, 1),  # min-p leaves 0.5 and 0.3
            (0.0, 3, 0.9, 3),  # (0.5 + 0.3) / 0.95 is not enough
            (0.0, -1, 1e-9, 1),  # always one
            (1.0, -1, 1.0, 1),
        ],
    )
    def test_top_p_is_of_what_min_p_and_top_k_leave(self, min_p, top_k, top_p, expected):
        x = scaled(torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log())
        cut = cutoffs(x, limits(4, (min_p, top_k, top_p)))
        assert int((x >= cut.final[0]).sum()) == expected

    def test_ties_at_the_cutoff_are_all_kept(self):
        x = scaled(torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]]))
        ordered = x.sort(-1, descending=True).values
        for limit in [(0.0, 2, 1.0), (0.0, -1, 0.6)]:
            cut = cutoffs(ordered, limits(5, limit))
            assert (x[0, :5] >= cut.final[0]).tolist() == [True, True, True, True, False]


class TestDraw:
    @pytest.mark.parametrize("vocab", [50, 64, 1000, LARGE, LARGE + 100])
    @pytest.mark.parametrize(
        "limit",
        [(0.0, 7, 1.0), (0.0, -1, 0.8), (0.05, -1, 1.0), (0.02, 40, 0.9), (0.0, 5, 0.7)],
    )
    def test_draws_exactly_what_is_kept(self, vocab, limit):
        logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(1))
        places = torch.randperm(vocab, generator=torch.Generator().manual_seed(2))[:40]
        logits[0, places] += torch.linspace(14, 9, 40)
        x = scaled(logits)
        expected, margin = kept(x[0, :vocab].double().numpy(), *limit)
        assert margin > 1e-5
        assert drawn(x, limits(vocab, limit)) == set(np.flatnonzero(expected).tolist())

    @pytest.mark.parametrize("spread", [8.0, 2.0, 0.3, 0.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_candidates_draw_as_the_whole_row_does(self, spread, dtype, monkeypatch):
        # From peaked rows, where candidates are enough, to flat ones, where they are not.
        generator = torch.Generator().manual_seed(3)
        logits = (torch.randn(96, LARGE, generator=generator) * spread).to(dtype)
        x = scaled(logits.float())
        choice = [(0.0, 50, 1.0), (0.0, -1, 0.9), (0.1, -1, 1.0), (0.1, 30, 0.5)]
        choice += [(0.0, 6000, 0.99), (0.0, 1, 1.0)]
        limit = limits(LARGE, *(choice[i % len(choice)] for i in range(96)))
        uniforms = torch.rand(96, dtype=torch.float64, generator=generator)
        before = x.clone()
        tokens = draw_truncated(x, limit, uniforms, CPU)
        assert torch.equal(x, before)
        assert tokens.tolist() == draw_truncated(x, limit, uniforms, GpuOps()).tolist()
        monkeypatch.setattr("folovllm.sampling.truncation._CANDIDATE_CHUNKS", LARGE)
        assert tokens.tolist() == draw_truncated(x, limit, uniforms, CPU).tolist()

    def test_few_possible_tokens_in_a_large_vocabulary(self):
        logits = torch.full((1, LARGE), -torch.inf)
        places = list(range(0, LARGE, LARGE // 100))
        logits[0, places] = torch.linspace(0, 0.1, len(places))
        x = scaled(logits)
        assert drawn(x, limits(LARGE, (0.0, 1000, 1.0)), 300) == set(places)
        half = kept(x[0].double().numpy(), 0.0, 1000, 0.5)[0]
        assert drawn(x, limits(LARGE, (0.0, 1000, 0.5)), 300) == set(np.flatnonzero(half).tolist())

    @pytest.mark.parametrize("limit", [(0.0, 50, 1.0), (0.0, -1, 0.3), (1.0, -1, 1.0)])
    def test_ties_beyond_the_candidates_are_kept(self, limit):
        logits = torch.randn(1, LARGE, generator=torch.Generator().manual_seed(5))
        places = list(range(7, LARGE, LARGE // 100))  # in more chunks than are candidates
        logits[0, places] = 20.0
        assert drawn(scaled(logits), limits(LARGE, limit), 300) == set(places)

    @pytest.mark.parametrize("limit", [(0.0, 5000, 1.0), (0.0, -1, 0.97)])
    def test_more_is_kept_than_there_are_candidates(self, limit):
        # All candidates are greater than all others: nothing but their number tells.
        logits = torch.rand(1, LARGE, generator=torch.Generator().manual_seed(6))
        logits[0, :4096] += 4
        x = scaled(logits)
        lost = kept(x[0].double().numpy(), *limit)[0]
        assert lost.sum() > 4096
        uniforms = torch.tensor([0.999], dtype=torch.float64)
        token = draw_truncated(x, limits(LARGE, limit), uniforms, CPU)
        assert token >= 4096
        assert lost[int(token)]

    def test_top_p_of_the_whole_beside_top_p_of_a_part(self):
        logits = torch.zeros(2, LARGE)
        logits[:, :4] = torch.tensor([10.0, 9.9, 9.8, 9.7])  # four fifths of the whole
        limit = limits(LARGE, (0.0, -1, 0.5), (0.0, 4, 0.5))
        uniforms = torch.full((2,), LAST_UNIFORM, dtype=torch.float64)
        assert draw_truncated(scaled(logits), limit, uniforms, CPU).tolist() == [2, 1]

    def test_rows_of_nan_disturb_nobody(self):
        x = scaled(torch.randn(3, LARGE, generator=torch.Generator().manual_seed(4)) * 5)
        limit = limits(LARGE, *[(0.0, 20, 0.9)] * 3)
        uniforms = torch.full((3,), 0.4, dtype=torch.float64)
        expected = draw_truncated(x, limit, uniforms, CPU).tolist()
        x[1] = torch.nan
        tokens = draw_truncated(x, limit, uniforms, CPU).tolist()
        assert [tokens[0], tokens[2]] == [expected[0], expected[2]]
        assert 0 <= tokens[1] < LARGE
