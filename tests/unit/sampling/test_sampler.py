import math

import numpy as np
import pytest
import torch

from folovllm.core.plan import NewSequence
from folovllm.outputs import Logprob
from folovllm.sampling import logprobs
from folovllm.sampling.sampler import SampledTokens, Sampler
from folovllm.sampling_params import NO_BAD_WORDS, BadWords, SamplingParams, SamplingSpec

VOCAB = 64
EOS = 2
CPU = torch.device("cpu")


def make_sampler(seqs=(), vocab=VOCAB, seed=0) -> Sampler:
    """A sampler that has met some sequences."""
    sampler = Sampler(vocab, CPU, seed=seed)
    sampler.meet(seqs)
    return sampler


def make_seqs(request_id="r", prompt=(1, 5), bad_words=NO_BAD_WORDS, **params) -> list[NewSequence]:
    """The sequences of a request."""
    checked = SamplingParams(**params)
    spec = SamplingSpec.of(checked, bad_words, [EOS])
    return [NewSequence(f"{request_id}-{i}", i, spec, prompt) for i in range(checked.best_of)]


def make_seq(request_id="r", prompt=(1, 5), **params) -> NewSequence:
    return make_seqs(request_id, prompt, **params)[0]


def ids_of(seqs) -> list[str]:
    return [seq.seq_id for seq in seqs]


def sample(logits, seqs, vocab=VOCAB, seed=0) -> SampledTokens:
    """What a new sampler makes of the first step of these sequences."""
    return make_sampler(seqs, vocab, seed).sample(logits, ids_of(seqs))


def normal(rows=1, vocab=VOCAB, seed=0, scale=2.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def go_on(sampler: Sampler, seqs, steps, logits=None) -> list[list[int]]:
    """Generate with the same logits for every row and step."""
    logits = normal() if logits is None else logits
    outputs: list[list[int]] = [[] for _ in seqs]
    for _ in range(steps):
        sampled = sampler.sample(logits.expand(len(seqs), -1), ids_of(seqs))
        assert not sampled.failed
        for output, token in zip(outputs, sampled.token_ids, strict=True):
            output.append(token)
    return outputs


def run(seqs, steps=20, logits=None, vocab=VOCAB, seed=0) -> list[list[int]]:
    """Generate with a new sampler."""
    return go_on(make_sampler(seqs, vocab, seed), seqs, steps, logits)


class TestGreedy:
    def test_takes_the_most_likely(self):
        logits = normal(5)
        seqs = [make_seq(str(i), temperature=0) for i in range(5)]
        sampled = sample(logits, seqs)
        assert sampled.token_ids == logits.argmax(-1).tolist()
        assert sampled.logprobs is None
        assert sampled.failed == {}
        assert {type(token) for token in sampled.token_ids} == {int}

    def test_whatever_the_truncation_says(self):
        seq = make_seq(temperature=0, top_k=3, top_p=0.1, min_p=0.5)
        logits = normal()
        assert sample(logits, [seq]).token_ids == [int(logits.argmax())]

    def test_with_drawn_rows_around_it(self):
        logits = normal(6)
        seqs = [make_seq(str(i), temperature=i % 3, seed=i) for i in range(6)]
        tokens = sample(logits, seqs).token_ids
        assert [tokens[0], tokens[3]] == logits[[0, 3]].argmax(-1).tolist()
        alone = [sample(logits[i : i + 1], [seqs[i]]).token_ids[0] for i in range(6)]
        assert tokens == alone


class TestOrder:
    def test_penalties_come_after_the_bias(self):
        # 4 becomes 4 + 4 = 8, then 8 / 4 = 2; the other way round it were 1 + 4 = 5.
        logits = torch.tensor([[3.0, 4.0, 0.0]])
        seq = make_seq(prompt=[1], temperature=0, repetition_penalty=4, logit_bias={1: 4})
        assert sample(logits, [seq], vocab=3).token_ids == [0]

    def test_temperature_comes_after_penalties(self):
        # Of 0.5 and 0.0, penalised by 1, the first has e^-0.5 / (1 + e^-0.5) at temperature 1
        # and, at temperature 0.1, e^-5 / (1 + e^-5): far from e^5, were it the other way round.
        logits = torch.tensor([[0.5, 0.0]])
        params = {"temperature": 0.1, "presence_penalty": 1.0}
        seqs = [make_seq(str(i), seed=i, **params) for i in range(500)]
        sampler = make_sampler(seqs, vocab=2)
        assert set(go_on(sampler, seqs, 1, torch.tensor([[99.0, 0.0]]))[0]) == {0}
        tokens = sampler.sample(logits.expand(500, -1), ids_of(seqs)).token_ids
        assert tokens.count(0) < 20

    def test_min_tokens_hold_back_the_ends_with_ignore_eos_too(self):
        logits = torch.zeros(1, VOCAB)
        logits[0, [EOS, 9, 7]] = torch.tensor([9.0, 8.0, 7.0])
        for ignore_eos in (False, True):
            seq = make_seq(
                str(ignore_eos),
                temperature=0,
                min_tokens=2,
                stop_token_ids=[9],
                ignore_eos=ignore_eos,
            )
            [tokens] = run([seq], 4, logits)
            assert tokens == [7, 7, EOS, EOS]

    def test_logprobs_are_of_the_raw_logits(self):
        logits = normal()
        best = int(logits.argmax())
        raw = logits.double().log_softmax(-1)[0]
        params = {"logit_bias": {best: -100}, "top_k": 1, "temperature": 0.3}
        seq = make_seq(logprobs=1, repetition_penalty=2.0, **params)
        sampled = sample(logits, [seq])
        [token], [entries] = sampled.token_ids, sampled.logprobs
        assert token != best
        assert list(entries) == [token, best]
        assert entries[best].rank == 1
        assert entries[token].logprob == pytest.approx(float(raw[token]), abs=1e-5)
        assert entries[best].logprob == pytest.approx(float(raw[best]), abs=1e-5)


class TestOutput:
    def test_siblings_look_back_at_their_own(self):
        """They share a prompt and logits: what one has generated is nothing to the other."""
        params = {"temperature": 0, "presence_penalty": 2.0}
        one, two = make_seqs(n=1, **params) + make_seqs("s", n=1, **params)
        logits = torch.tensor([[1.0, 0.5, 0.0]])
        sampler = make_sampler([one, two], vocab=3)
        assert go_on(sampler, [one], 2, logits) == [[0, 1]]
        assert go_on(sampler, [one, two], 2, logits) == [[2, 0], [0, 1]]

    def test_what_is_done_with_is_not_looked_at(self):
        seqs = [make_seq(temperature=0, min_tokens=3)]
        sampler = make_sampler(seqs)
        go_on(sampler, seqs, 8)
        assert len(sampler._states["r-0"].edits.output) == 3


class TestBadWords:
    def test_every_spelling_is_barred(self):
        logits = torch.zeros(1, VOCAB)
        logits[0, [7, 8, 9, 4]] = torch.tensor([4.0, 3.0, 3.5, 2.0])
        seqs = [make_seq(temperature=0, bad_words=BadWords(((0, 8, 1),), ((0, 7), (1, 9))))]
        sampler = make_sampler(seqs)
        logits[0, 9] = 2.5
        assert go_on(sampler, seqs, 3, logits) == [[8, 8, 8]]
        logits[0, 9] = 5.0  # most likely, but not after 8
        assert go_on(sampler, seqs, 2, logits) == [[8, 8]]


class TestSeeds:
    def test_a_seed_repeats(self):
        first = run([make_seq("a", seed=5)], seed=1)
        assert first == run([make_seq("b", seed=5)], seed=2)
        assert first != run([make_seq("a", seed=6)], seed=1)

    def test_siblings_differ_and_repeat(self):
        outputs = run(make_seqs(n=4, seed=5))
        assert len({tuple(output) for output in outputs}) == 4
        assert outputs == run(make_seqs("other-1", n=4, seed=5), seed=9)
        assert outputs[0] == run([make_seq(seed=5)])[0]

    def test_every_bit_counts(self):
        seeds = [1, 1 + 2**32, 1 + 2**40, 1 - 2**63, -2, 2]
        outputs = run([make_seq(str(seed), seed=seed) for seed in seeds])
        assert len({tuple(output) for output in outputs}) == len(seeds)

    def test_without_a_seed_a_run_repeats(self):
        def unseeded(seed):
            return run([make_seq(str(i)) for i in range(3)], seed=seed)

        assert unseeded(1) == unseeded(1)
        assert unseeded(1) != unseeded(2)
        assert len({tuple(output) for output in unseeded(1)}) == 3

    def test_neighbours_and_places_change_nothing(self):
        kinds = [
            {},
            {"top_k": 5},
            {"temperature": 0},
            {"top_p": 0.7, "repetition_penalty": 1.2},
            {"min_p": 0.1, "logprobs": 2},
            {"min_tokens": 4, "top_k": 20, "top_p": 0.9},
        ]

        def seqs():
            return [make_seq(str(i), seed=i, **kind) for i, kind in enumerate(kinds)]

        alone = [run([seq])[0] for seq in seqs()]
        assert run(seqs()) == alone
        assert run(seqs()[::-1]) == alone[::-1]

    def test_a_pause_changes_nothing(self):
        params = {
            "seed": 5,
            "repetition_penalty": 1.3,
            "bad_words": BadWords(((0, 3, 1),), ((1, 4),)),
            "min_tokens": 9,
        }
        seq, other = make_seq("a", **params), make_seq("b")
        sampler = make_sampler([seq, other])
        output = go_on(sampler, [seq, other], 7)[0]
        go_on(sampler, [other], 5)  # seq is preempted
        output += go_on(sampler, [other, seq], 13)[1]
        assert output == run([make_seq("c", **params)])[0]

    def test_forgetting_begins_anew(self):
        seqs = [make_seq(seed=5, frequency_penalty=2)]
        sampler = make_sampler(seqs)
        first = go_on(sampler, seqs, 20)
        sampler.forget(["never-seen", *ids_of(seqs)])
        with pytest.raises(KeyError):
            go_on(sampler, seqs, 1)
        sampler.meet(seqs)
        assert first == go_on(sampler, seqs, 20)


def exact(logits, temperature=1.0, min_p=0.0, top_k=None, top_p=1.0) -> np.ndarray:
    """The distribution, in the order of the stages, of logits without ties."""
    z = logits.double().numpy() / temperature
    p = np.exp(z - z.max())
    p[p < min_p * p.max()] = 0
    order = np.argsort(-p)
    p[order[top_k:]] = 0 if top_k else p[order[top_k:]]
    p /= p.sum()
    enough = int((p[order].cumsum() < top_p).sum()) + 1
    p[order[enough:]] = 0
    return p / p.sum()


class TestDistribution:
    @pytest.mark.parametrize(
        "params",
        [
            {},
            {"temperature": 0.6},
            {"temperature": 1.7},
            {"top_k": 10},
            {"top_p": 0.8},
            {"min_p": 0.1},
            {"temperature": 1.5, "top_k": 20, "top_p": 0.9},
            {"temperature": 1.3, "min_p": 0.02, "top_k": 30, "top_p": 0.95},
        ],
    )
    def test_follows_the_exact_probabilities(self, params):
        logits = normal(seed=7, scale=1.5)
        p = exact(logits[0], **params)
        tokens = np.array(run(make_seqs(n=2000, seed=3, **params), 10, logits)).ravel()
        counts = np.bincount(tokens, minlength=VOCAB)
        assert (counts[p == 0] == 0).all()
        # Cells that expect fewer than 5 are joined, as the test's approximation needs.
        expected = p * len(tokens)
        rare = expected < 5
        observed = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
        if expected[-1] < 5:
            observed, expected = observed[:-1], expected[:-1]
        statistic = float(((observed - expected) ** 2 / expected).sum())
        # Wilson and Hilferty's approximation of the value that chance passes once in 30,000.
        df = len(expected) - 1
        bound = df * (1 - 2 / (9 * df) + 4 * math.sqrt(2 / (9 * df))) ** 3
        assert statistic < bound

    def test_tiny_and_huge_temperatures(self):
        logits = normal(scale=8)
        assert set(run([make_seq(temperature=1e-40)], 9, logits)[0]) == {int(logits.argmax())}
        [tokens] = run([make_seq(temperature=1e300, seed=1)], 500, logits)
        assert len(set(tokens)) > VOCAB / 2
        [tokens] = run([make_seq(temperature=1e20, top_k=3)], 100, logits)
        assert set(tokens) == set(logits[0].topk(3).indices.tolist())


class TestFailures:
    REASONS = {  # noqa: RUF012
        "nan": (torch.nan, "NaN"),
        "inf": (torch.inf, "infinity"),
        "all -inf": (-torch.inf, "all -infinity"),
    }

    @pytest.mark.parametrize("what", REASONS)
    @pytest.mark.parametrize(
        "params",
        [
            {"temperature": 0},
            {},
            {"top_k": 5, "top_p": 0.9},
            {"logit_bias": {1: 1}, "logprobs": 2},
            {"temperature": 0, "allowed_token_ids": [4, 6]},
        ],
    )
    def test_a_row_fails_alone(self, what, params):
        value, reason = self.REASONS[what]
        logits = normal(3)

        seqs = [make_seq(str(i), seed=i, **params) for i in range(3)]
        healthy = sample(logits, seqs)
        logits[1, slice(None) if what == "all -inf" else 40] = value
        sampled = sample(logits, seqs)
        assert list(sampled.failed) == [1]
        assert reason in sampled.failed[1]
        for row in (0, 2):
            assert sampled.token_ids[row] == healthy.token_ids[row]
            if healthy.logprobs is not None:
                assert sampled.logprobs[row] == healthy.logprobs[row]

    @pytest.mark.parametrize("temperature", [0, 1])
    def test_nothing_is_left(self, temperature):
        params = {"temperature": temperature, "allowed_token_ids": [EOS], "min_tokens": 1}
        sampled = sample(normal(2), [make_seq("a", **params), make_seq("b")])
        assert list(sampled.failed) == [0]
        assert "no token is left" in sampled.failed[0]

    def test_minus_infinity_here_and_there_is_fine(self):
        logits = torch.full((1, VOCAB), -torch.inf)
        logits[0, 17] = -3.0
        seqs = [make_seq("a"), make_seq("b", temperature=0), make_seq("c", top_k=4, top_p=0.5)]
        assert run(seqs, 2, logits) == [[17, 17]] * 3


class TestLogits:
    @pytest.mark.parametrize("vocab", [3, 50, 64, 100])
    def test_padding_is_never_chosen(self, vocab):
        logits = normal(1, vocab + 30)
        logits[:, vocab:] = 100.0
        logits[:, vocab + 1] = torch.nan
        kinds = [{"temperature": 0}, {}, {"top_k": 2}, {"logit_bias": {0: 1}}, {"temperature": 9}]
        seqs = [make_seq(str(i), prompt=[1], logprobs=3, **kind) for i, kind in enumerate(kinds)]
        for output in run(seqs, 10, logits, vocab):
            assert max(output) < vocab
        sampler = make_sampler([make_seq(prompt_logprobs=-1)], vocab)
        [entries] = sampler.prompt_logprobs(logits, "r-0", [0])
        assert sorted(entries) == list(range(vocab))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_gives_what_float32_does(self, dtype):
        logits = normal(5).to(dtype)
        kinds = [{}, {"top_k": 9, "logprobs": 1}, {"logit_bias": {3: 0.1}}, {"temperature": 0}]
        kinds.append({"temperature": 0, "repetition_penalty": 1.3})

        seqs = [make_seq(str(i), seed=i, **kind) for i, kind in enumerate(kinds)]
        assert sample(logits, seqs) == sample(logits.float(), seqs)

    @pytest.mark.parametrize("params", [{}, {"top_k": 5}, {"logit_bias": {1: 5}}, {"logprobs": 1}])
    def test_logits_are_left_as_they_are_and_may_be_shared(self, params):
        logits = normal()
        before = logits.clone()
        seqs = make_seqs(n=5, seed=1, **params)
        shared = run(seqs, 3, logits)
        assert torch.equal(logits, before)
        assert shared == run(seqs, 3, before.repeat(5, 1))


class TestLogprobs:
    def test_each_row_gets_what_it_asked_for(self):
        logits = normal(5)
        seqs = [
            make_seq("0", logprobs=2, temperature=0),
            make_seq("1"),
            make_seq("2", logprobs=0),
            make_seq("3", logprobs=-1),
            make_seq("4", logprobs=500),
        ]
        sampled = sample(logits, seqs)
        sizes = [None if entries is None else len(entries) for entries in sampled.logprobs]
        assert sizes in ([2, None, 1, VOCAB, VOCAB], [3, None, 1, VOCAB, VOCAB])
        raw = logits.double().log_softmax(-1)
        for row, entries in enumerate(sampled.logprobs):
            for token, entry in (entries or {}).items():
                assert isinstance(entry, Logprob)
                assert entry.logprob == pytest.approx(float(raw[row, token]), abs=1e-5)
                assert entry.rank == int((raw[row] >= raw[row, token]).sum())
        assert next(iter(sampled.logprobs[2])) == sampled.token_ids[2]

    def test_candidates_have_that_of_the_chosen_token(self):
        seqs = make_seqs(n=1, best_of=3)
        sampled = sample(normal().expand(3, -1), seqs)
        assert [list(entries) for entries in sampled.logprobs] == [[t] for t in sampled.token_ids]

    @pytest.mark.parametrize(("count", "size"), [(0, 1), (2, 3), (-1, VOCAB)])
    def test_of_a_prompt(self, count, size):
        logits = normal(3)
        last = logits.argmin(-1).tolist()
        sampler = make_sampler([make_seq(prompt_logprobs=count)])
        found = sampler.prompt_logprobs(logits, "r-0", last)
        raw = logits.double().log_softmax(-1)
        for row, (token, entries) in enumerate(zip(last, found, strict=True)):
            assert next(iter(entries)) == token
            assert len(entries) == size
            assert entries[token].rank == VOCAB
            for other, entry in entries.items():
                assert entry.logprob == pytest.approx(float(raw[row, other]), abs=1e-5)

    def test_of_a_long_prompt_is_looked_at_in_parts(self, monkeypatch):
        logits = normal(600)
        tokens = logits.argmax(-1).tolist()
        sampler = make_sampler([make_seq(prompt_logprobs=1)])
        sizes, tabulate = [], logprobs.tabulate

        def note(rows, *rest):
            sizes.append(len(rows))
            return tabulate(rows, *rest)

        monkeypatch.setattr(logprobs, "tabulate", note)
        found = sampler.prompt_logprobs(logits, "r-0", tokens)
        assert sizes == [256, 256, 88]
        for row in (0, 255, 256, 599):
            part = logits[row : row + 1], "r-0", tokens[row : row + 1]
            assert found[row] == sampler.prompt_logprobs(*part)[0]
