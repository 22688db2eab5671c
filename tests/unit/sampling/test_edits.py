import numpy as np
import torch
from hypothesis import given, strategies as st

from folovllm.sampling.edits import EditBatch, Edits, SeenTokens
from folovllm.sampling_params import BadWords, SamplingSpec


def make_edits(output=(), prompt=(1,), vocab=10, **spec) -> Edits:
    edits = Edits(SamplingSpec(**spec), prompt, vocab)
    for token in output:
        edits.append(token)
    return edits


def after(output: list[int], **options) -> list[float]:
    """The logits 0, 1, 2, … as a sequence wants them after some output."""
    return edited(make_edits(output, **options))


def edited(edits: Edits) -> list[float]:
    batch = EditBatch()
    batch.add(0, edits)
    logits = torch.arange(10, dtype=torch.float32)[None].clone()
    batch.apply(logits)
    return logits[0].tolist()


def barred(output: list[int], **options) -> set[int]:
    return {i for i, value in enumerate(after(output, **options)) if value == -np.inf}


def words(*sequences, silent=()) -> BadWords:
    """Bar sequences of token ids: each token but the last leads on, the last is an end."""
    steps, ends, state = [], [], 0
    for sequence in sequences:
        places = [0, *range(state + 1, state + len(sequence))]
        steps += zip(places, sequence, places[1:], strict=False)
        ends.append((places[-1], sequence[-1]))
        state = max(state, *places)
    return BadWords(tuple(steps), tuple(ends), tuple(silent))


class TestBadWords:
    def test_one_token_is_always_barred(self):
        bad = words((3,), (5,))
        assert barred([], bad_words=bad) == barred([3, 4], bad_words=bad) == {3, 5}

    def test_of_several_the_last_is_barred_after_the_others(self):
        bad = words((1, 2), (1, 2, 3))
        assert barred([], bad_words=bad) == set()
        assert barred([1], bad_words=bad) == {2}
        assert barred([1, 2], bad_words=bad) == {3}
        assert barred([2], bad_words=bad) == set()  # the output is shorter than the word
        assert barred([1, 2, 4], bad_words=bad) == set()

    def test_a_beginning_within_a_beginning(self):
        bad = words((1, 1, 2))
        assert barred([1, 1, 1], bad_words=bad) == {2}

    def test_tokens_without_a_text_change_nothing(self):
        bad = words((1, 2), silent=[9])
        assert barred([1, 9, 9], bad_words=bad) == {2}
        assert barred([1, 8], bad_words=bad) == set()

    def test_the_prompt_does_not_count(self):
        assert barred([], bad_words=words((1, 2)), prompt=[1]) == set()

    def test_what_is_out_of_the_vocabulary_is_left_out(self):
        bad = words((10,), (1, 10))
        assert not make_edits(bad_words=bad).active
        assert barred([1], bad_words=bad) == set()


class TestMinTokens:
    def test_ends_are_barred_until_there_are_enough(self):
        options = {"end_token_ids": (2, 7, 99), "min_tokens": 2}
        assert barred([], **options) == barred([1], **options) == {2, 7}
        assert barred([1, 1], **options) == set()
        assert [make_edits([1] * n, **options).active for n in range(3)] == [True, True, False]

    def test_a_bias_does_not_bring_them_back(self):
        assert 2 in barred([], end_token_ids=(2,), min_tokens=1, logit_bias=((2, 100),))


class TestAllowedAndBias:
    def test_allowed(self):
        assert barred([], allowed_token_ids=(1, 8, 99)) == set(range(10)) - {1, 8}

    def test_nothing_within_the_vocabulary_is_allowed(self):
        assert barred([], allowed_token_ids=(99,)) == set(range(10))

    def test_a_bad_word_wins_over_allowed(self):
        assert barred([], allowed_token_ids=(1, 8), bad_words=words((8,))) == set(range(10)) - {1}

    def test_bias_is_added(self):
        values = after([], logit_bias=((3, 1.5), (4, -2), (99, 1)))
        assert values == [0, 1, 2, 4.5, 2, 5, 6, 7, 8, 9]


class TestSeenTokens:
    @given(
        st.lists(st.integers(0, 12)),
        st.lists(st.integers(0, 9), max_size=90),
        st.booleans(),
    )
    def test_counts_as_counting_anew_would(self, prompt, tokens, repeated):
        seen = SeenTokens(prompt, (1.5 if repeated else 1.0, 0.5, 0.0), 10)
        expected = dict.fromkeys((t for t in prompt if t < 10), 0) if repeated else {}
        assert dict(zip(seen.ids.tolist(), seen.counts.tolist(), strict=True)) == expected
        for token in tokens:
            seen.add(token)
            expected[token] = expected.get(token, 0) + 1
            assert dict(zip(seen.ids.tolist(), seen.counts.tolist(), strict=True)) == expected

    def test_frequency_and_presence_look_at_the_output(self):
        values = after([4, 4, 6], frequency_penalty=1.0, presence_penalty=0.5)
        assert values == [0, 1, 2, 3, 1.5, 5, 4.5, 7, 8, 9]

    def test_repetition_looks_at_the_prompt_and_comes_after_the_bias(self):
        values = after([], repetition_penalty=2.0, logit_bias=((4, 2),), prompt=[4, 5])
        assert values == [0, 1, 2, 3, 3, 2.5, 6, 7, 8, 9]


class TestBatch:
    def test_nothing_to_do_is_false(self):
        batch = EditBatch()
        batch.add(0, make_edits(bad_words=words((1, 2))))
        batch.add(1, make_edits(frequency_penalty=1.0))
        assert not batch
        batch.add(2, make_edits(bad_words=words((1,))))
        assert batch

    def test_rows_have_their_own(self):
        each = [
            make_edits(allowed_token_ids=(1, 2)),
            make_edits([1], bad_words=words((3,)), end_token_ids=(0,), min_tokens=5),
            make_edits([2], logit_bias=((5, 1),), repetition_penalty=2.0, prompt=[8, 8]),
            make_edits([2, 2], presence_penalty=1.0),
            make_edits(allowed_token_ids=(4,), logit_bias=((4, -1),)),
        ]
        batch = EditBatch()
        for row, edits in enumerate(each, 1):
            batch.add(row, edits)
        logits = torch.arange(10.0).repeat(7, 1)
        batch.apply(logits)
        for row, edits in enumerate(each, 1):
            assert logits[row].tolist() == edited(edits)
        assert logits[0].tolist() == logits[6].tolist() == list(range(10))
