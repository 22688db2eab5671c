import numpy as np
import torch
from hypothesis import given, strategies as st

from folovllm.sampling.edits import EditBatch, Edits, SeenTokens
from folovllm.sampling_params import SamplingParams


def make_edits(bad_words=(), ends=(), prompt=(1,), vocab=10, **params) -> Edits:
    return Edits(SamplingParams(**params), prompt, bad_words, ends, vocab)


def edited(edits: Edits, output: list[int], vocab: int = 10) -> list[float]:
    batch = EditBatch()
    batch.add(0, edits, output)
    logits = torch.arange(vocab, dtype=torch.float32)[None].clone()
    batch.apply(logits)
    return logits[0].tolist()


def barred(edits: Edits, output: list[int]) -> set[int]:
    return {i for i, value in enumerate(edited(edits, output)) if value == -np.inf}


class TestBadWords:
    def test_one_token_is_always_barred(self):
        edits = make_edits(bad_words=[[3], [5]])
        assert barred(edits, []) == barred(edits, [3, 4]) == {3, 5}

    def test_of_several_the_last_is_barred_after_the_others(self):
        edits = make_edits(bad_words=[[1, 2], [1, 2, 3]])
        assert barred(edits, []) == set()
        assert barred(edits, [1]) == {2}
        assert barred(edits, [1, 2]) == {3}
        assert barred(edits, [2]) == set()  # the output is shorter than the word
        assert barred(edits, [1, 2, 4]) == set()

    def test_the_prompt_does_not_count(self):
        assert barred(make_edits(bad_words=[[1, 2]], prompt=[1]), []) == set()

    def test_what_is_empty_or_out_of_the_vocabulary_is_left_out(self):
        edits = make_edits(bad_words=[[], [10], [1, 10]])
        assert not edits.lasting
        assert barred(edits, [1]) == set()


class TestMinTokens:
    def test_ends_are_barred_until_there_are_enough(self):
        edits = make_edits(ends=[2, 7, 99], min_tokens=2)
        assert barred(edits, []) == barred(edits, [1]) == {2, 7}
        assert barred(edits, [1, 1]) == set()
        assert not edits.lasting

    def test_a_bias_does_not_bring_them_back(self):
        assert 2 in barred(make_edits(ends=[2], min_tokens=1, logit_bias={2: 100}), [])


class TestAllowedAndBias:
    def test_allowed(self):
        assert barred(make_edits(allowed_token_ids=[1, 8, 99]), []) == set(range(10)) - {1, 8}

    def test_nothing_within_the_vocabulary_is_allowed(self):
        assert barred(make_edits(allowed_token_ids=[99]), []) == set(range(10))

    def test_a_bad_word_wins_over_allowed(self):
        edits = make_edits(allowed_token_ids=[1, 8], bad_words=[[8]])
        assert barred(edits, []) == set(range(10)) - {1}

    def test_bias_is_added(self):
        values = edited(make_edits(logit_bias={3: 1.5, 4: -2, 99: 1}), [])
        assert values == [0, 1, 2, 4.5, 2, 5, 6, 7, 8, 9]


class TestSeenTokens:
    @given(
        st.lists(st.integers(0, 12)),
        st.lists(st.lists(st.integers(0, 9), max_size=40), max_size=4),
        st.booleans(),
    )
    def test_counts_as_counting_anew_would(self, prompt, pieces, repeated):
        seen = SeenTokens(prompt, (1.5 if repeated else 1.0, 0.5, 0.0), 10)
        output: list[int] = []
        for piece in [*pieces, []]:
            output += piece
            seen.count(output)
            expected = dict.fromkeys((t for t in prompt if t < 10), 0) if repeated else {}
            expected |= {token: output.count(token) for token in output}
            assert dict(zip(seen.ids.tolist(), seen.counts.tolist(), strict=True)) == expected

    def test_begins_in_the_middle_of_an_output(self):
        values = edited(make_edits(frequency_penalty=1.0, presence_penalty=0.5), [4, 4, 6])
        assert values == [0, 1, 2, 3, 1.5, 5, 4.5, 7, 8, 9]

    def test_repetition_looks_at_the_prompt_and_comes_after_the_bias(self):
        values = edited(make_edits(repetition_penalty=2.0, logit_bias={4: 2}, prompt=[4, 5]), [])
        assert values == [0, 1, 2, 3, 3, 2.5, 6, 7, 8, 9]


class TestBatch:
    def test_nothing_to_do_is_false(self):
        batch = EditBatch()
        batch.add(0, make_edits(bad_words=[[1, 2]]), [])
        batch.add(1, make_edits(frequency_penalty=1.0), [])
        assert not batch
        batch.add(2, make_edits(bad_words=[[1]]), [])
        assert batch

    def test_rows_have_their_own(self):
        each = [
            make_edits(allowed_token_ids=[1, 2]),
            make_edits(bad_words=[[3]], ends=[0], min_tokens=5),
            make_edits(logit_bias={5: 1}, repetition_penalty=2.0, prompt=[8, 8]),
            make_edits(presence_penalty=1.0),
            make_edits(allowed_token_ids=[4], logit_bias={4: -1}),
        ]
        outputs = [[], [1], [2], [2, 2], []]
        batch = EditBatch()
        for row, (edits, output) in enumerate(zip(each, outputs, strict=True)):
            batch.add(row + 1, edits, output)
        logits = torch.arange(10.0).repeat(7, 1)
        batch.apply(logits)
        for row, (edits, output) in enumerate(zip(each, outputs, strict=True)):
            assert logits[row + 1].tolist() == edited(edits, output)
        assert logits[0].tolist() == logits[6].tolist() == list(range(10))
