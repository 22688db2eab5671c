import itertools
import time

import numpy as np
import pytest
import torch

from folovllm.sampling_params import BadWords, SamplingParams
from folovllm.text.input_processor import InputProcessor, TokenizedPrompt


def failing():
    """An iterator that fails on its way."""
    yield 1
    raise KeyError("gone")


@pytest.fixture
def processor(tokenizers):
    return InputProcessor(tokenizers["byte_level"], max_model_len=16, vocab_size=402)


@pytest.fixture
def without():
    return InputProcessor(None, max_model_len=16, vocab_size=10)


def process(processor, prompt, **params):
    return processor.process("r", prompt, SamplingParams(**params))


class TestPrompts:
    @pytest.mark.parametrize("prompt", ["the fox", {"prompt": "the fox"}])
    def test_text(self, processor, prompt):
        request = process(processor, prompt)
        assert request.prompt == "the fox"
        assert processor.tokenizer.decode(request.prompt_token_ids) == "the fox"

    @pytest.mark.parametrize(
        "prompt",
        [
            [5, 6],
            (5, 6),
            np.array([5, 6]),
            np.array([5, 6], np.uint8),
            torch.tensor([5, 6]),
            range(5, 7),
            {"prompt_token_ids": [5, 6]},
            {"prompt": None, "prompt_token_ids": [5, 6]},
            TokenizedPrompt(None, [5, 6]),
        ],
    )
    def test_token_ids(self, processor, without, prompt):
        for p in (processor, without):
            request = process(p, prompt)
            assert (request.prompt, request.prompt_token_ids) == (None, [5, 6])

    def test_what_belongs_to_the_request(self, processor):
        params = SamplingParams(n=2)
        request = processor.process("name", [1], params, arrival_time=5.0, priority=-3)
        assert (request.request_id, request.arrival_time, request.priority) == ("name", 5.0, -3)
        assert request.sampling_params == params
        assert request.sampling_params is not params
        assert list(request.sequences) == ["name-0", "name-1"]

    def test_arrives_now(self, processor):
        before = time.time()
        assert before <= process(processor, [1]).arrival_time <= time.time()

    @pytest.mark.parametrize(
        ("prompt", "message"),
        [
            ("", "prompt must be a text that is not empty"),
            ({"prompt": ""}, r"prompt\['prompt'\] must be a text that is not empty"),
            ([], "prompt must be a list of at least one token id"),
            ({"prompt_token_ids": []}, r"prompt\['prompt_token_ids'\] must be a list of at least"),
            ({}, "either 'prompt' or 'prompt_token_ids', got neither"),
            ({"prompt": None}, "got neither"),
            ({"prompt": "a", "prompt_token_ids": [1]}, "got both"),
            ({"promt": "a"}, "the key 'promt'; did you mean prompt?"),
            ({"prompt": "a", "multi_modal_data": {}}, "the key 'multi_modal_data'"),
            ({"prompt": [1]}, r"prompt\['prompt'\] must be text, got \[1\]"),
            ({"prompt_token_ids": "a"}, r"must be a list of token ids, got 'a'"),
            (["a", "b"], r"prompt\[0\] must be an integer >= 0, got 'a'"),
            ([[1, 2]], r"prompt\[0\] must be an integer"),
            ([1, -1], r"prompt\[1\] must be an integer >= 0, got -1"),
            (np.array(5), r"prompt must be text, a list of token ids.*got array\(5\)"),
            (torch.tensor(5), r"prompt must be text, a list of token ids.*got tensor\(5\)"),
            (np.array([1.5]), r"prompt\[0\] must be an integer >= 0, got 1.5"),
            (torch.tensor([[1, 2]]), r"prompt\[0\] must be an integer >= 0, got \[1, 2\]"),
            (np.array(["a"]), r"prompt\[0\] must be an integer >= 0, got 'a'"),
            (np.array([True]), r"prompt\[0\] must be an integer >= 0, got True"),
            ({"prompt_token_ids": np.array(1)}, r"\['prompt_token_ids'\] must be a list of token"),
            ({"prompt_token_ids": failing()}, r"\['prompt_token_ids'\] must be .* raised KeyError"),
            (failing(), "prompt must be .*; reading it raised KeyError: 'gone'"),
            (itertools.count(), "prompt must be text, a list of token ids.*got more than 16777216"),
            (b"a", "prompt must be text, a list of token ids"),
            (5, "prompt must be text, a list of token ids"),
            (None, "prompt must be text"),
            ("a\ud800", "valid Unicode: the character at 1 is half of one"),
            ([1, 402], "prompt_token_ids must be token ids below 402"),
            ([1] * 16, "has 16 tokens and the model's max_model_len is 16"),
        ],
    )
    def test_refused(self, processor, prompt, message):
        with pytest.raises(ValueError, match=message.replace("?", r"\?")):
            process(processor, prompt)

    def test_a_text_that_is_too_long_is_not_tokenised(self, processor, monkeypatch):
        monkeypatch.setattr(processor, "_encode", lambda *_, **__: pytest.fail("tokenised"))
        longest = max(map(len, processor.tokenizer.get_vocab()))
        with pytest.raises(
            ValueError, match=f"prompt is too long: it has .* 16 tokens .* {longest * 16} at"
        ):
            process(processor, "fox" * 10**7)
        with pytest.raises(ValueError, match=r"prompts\[1\] is too long"):
            processor.tokenize(["a", "fox" * 10**6])

    def test_what_is_truncated_is_never_too_long(self, processor):
        request = process(processor, "fox" * 10**4, truncate_prompt_tokens=4)
        assert len(request.prompt_token_ids) == 4

    def test_where_a_token_may_be_of_any_length_it_is_tokenised(self, tokenizers):
        processor = InputProcessor(tokenizers["words"], max_model_len=16, vocab_size=10)
        assert process(processor, "a" * 10**5).prompt_token_ids == [0]

    def test_the_longest_leaves_room_for_one_token(self, processor):
        assert len(process(processor, [1] * 15).prompt_token_ids) == 15

    def test_truncated_to_its_end(self, processor):
        assert process(processor, list(range(40)), truncate_prompt_tokens=2).prompt_token_ids == [
            38,
            39,
        ]
        with pytest.raises(ValueError, match="20 tokens"):
            process(processor, list(range(40)), truncate_prompt_tokens=20)

    def test_text_without_tokens_is_refused(self, tokenizers):
        processor = InputProcessor(tokenizers["words"], max_model_len=16, vocab_size=10)
        with pytest.raises(ValueError, match="prompt must be a text of at least one token, got ' "):
            process(processor, "  ")

    def test_text_without_a_tokenizer_is_refused(self, without):
        with pytest.raises(ValueError, match="there is no tokenizer to read text with, got 'a'"):
            process(without, "a")


class TestTokenize:
    def test_many_at_once_in_their_order(self, processor):
        prompts = ["the fox", [7], {"prompt": "dog"}, {"prompt_token_ids": [8]}]
        tokenized = processor.tokenize(prompts)
        assert [t.text for t in tokenized] == ["the fox", None, "dog", None]
        alone = [processor.tokenize([prompt])[0] for prompt in prompts]
        assert tokenized == alone
        assert processor.tokenize(tokenized) == tokenized
        assert processor.tokenize([]) == []

    def test_names_the_wrong_one(self, processor):
        with pytest.raises(ValueError, match=r"prompts\[1\] must be a text that is not empty"):
            processor.tokenize(["a", ""])

    @pytest.mark.parametrize(("add", "expected"), [(True, [1]), (False, [])])
    def test_special_tokens(self, tokenizers, add, expected):
        processor = InputProcessor(tokenizers["slow"], max_model_len=16, vocab_size=400)
        [tokenized] = processor.tokenize(["a"], add_special_tokens=add)
        assert tokenized.token_ids == [100, *expected]  # the end-of-sequence token
        request = processor.process("r", "a", SamplingParams(), add_special_tokens=add)
        assert request.prompt_token_ids == tokenized.token_ids


class TestParams:
    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"stop_token_ids": [1, 402]}, "stop_token_ids must be .* below 402 .* got 402"),
            ({"allowed_token_ids": [500]}, "allowed_token_ids must be .* below 402 .* got 500"),
            ({"logit_bias": {402: 1.0}}, "logit_bias must be .* below 402 .* got 402"),
            ({"logprobs": 403}, "logprobs must be at most 402"),
            ({"prompt_logprobs": 403}, "prompt_logprobs must be at most 402"),
        ],
    )
    def test_outside_the_vocabulary(self, processor, params, message):
        with pytest.raises(ValueError, match=message):
            process(processor, [1], **params)

    def test_at_its_border(self, processor):
        process(
            processor,
            [401],
            stop_token_ids=[401],
            allowed_token_ids=[401],
            logit_bias={401: 1.0},
            logprobs=-1,
            prompt_logprobs=402,
        )

    @pytest.mark.parametrize("params", [{"stop": "a"}, {"bad_words": ["a"]}])
    def test_text_without_a_tokenizer(self, without, params):
        [field] = params
        with pytest.raises(ValueError, match=f"{field} must be empty: there is no tokenizer"):
            process(without, [1], **params)

    def test_of_another_type(self, processor):
        with pytest.raises(ValueError, match="sampling_params must be a SamplingParams"):
            processor.process("r", [1], {"n": 1})

    @pytest.mark.parametrize("priority", [1.5, "high", True])
    def test_priority(self, processor, priority):
        with pytest.raises(ValueError, match="priority must be an integer"):
            processor.process("r", [1], SamplingParams(), priority=priority)


class TestBadWords:
    def test_they_are_token_ids_from_the_request_on(self, processor):
        """Nothing is tokenised in the middle of a step."""
        request = processor.process("r", [1], SamplingParams(bad_words=[" f"]))
        barred = {token for state, token in request.sampling.bad_words.ends if state == 0}
        encode = processor.tokenizer.encode
        assert set(encode("f") + encode(" f")) <= barred

    def test_none_without_any(self, processor):
        assert process(processor, [1]).sampling.bad_words == BadWords()


def test_the_models_own_ends_are_in_the_request(tokenizers):
    processor = InputProcessor(
        tokenizers["words"], max_model_len=16, vocab_size=10, eos_token_ids=(7, 5)
    )
    request = processor.process("r", [1], SamplingParams(stop_token_ids=[6, 7]))
    assert request.sampling.end_token_ids == (5, 6, 7)


class TestCacheSalt:
    @pytest.mark.parametrize("prompt", [{"prompt": "the"}, {"prompt_token_ids": [3, 4]}])
    def test_is_the_requests_and_its_sequences(self, processor, prompt):
        def keys(salt):
            request = processor.process("r", {**prompt, "cache_salt": salt}, SamplingParams(n=2))
            assert request.cache_salt == salt
            return {seq.extra_keys for seq in request.get_seqs()}

        assert keys(None) == {()}
        assert len(keys("a") | keys("b")) == 2

    @pytest.mark.parametrize("salt", ["", 1, b"a"])
    def test_what_is_no_salt(self, processor, salt):
        with pytest.raises(
            ValueError, match=r"prompt\['cache_salt'\] must be a string that is not"
        ):
            processor.process("r", {"prompt": "the", "cache_salt": salt}, SamplingParams())
