import json

import pytest
from hypothesis import given, strategies as st

from folovllm.bench.results import BenchError
from folovllm.bench.workloads import (
    ConversationSource,
    RandomSource,
    nano_vllm,
    read_conversations,
    uniform,
)
from folovllm.config.bench import Range


@pytest.mark.parametrize(("text", "low", "high"), [("128", 128, 128), ("16-256", 16, 256)])
def test_a_range_is_read_and_written(text, low, high):
    assert Range.parse(text) == Range(low, high)
    assert str(Range(low, high)) == text


@pytest.mark.parametrize("text", ["", "0", "-3", "5-4", "1-", "a", "1.5", "0-4"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ValueError, match=f"got '{text}'"):
        Range.parse(text)


@given(st.integers(1, 50), st.integers(0, 50), st.integers(1, 40), st.integers(0, 9))
def test_lengths_are_within_their_ranges_and_the_same_again(low, more, count, seed):
    lengths = uniform(Range(low, low + more), Range(1, 3), seed)
    drawn = lengths(count)
    assert drawn == lengths(count)
    assert len(drawn) == count
    assert all(low <= tokens_in <= low + more and 1 <= out <= 3 for tokens_in, out in drawn)


def test_the_batch_is_the_same_on_every_machine():
    drawn = uniform(Range(16, 256), Range(16, 128))(32)
    assert [sum(each) for each in zip(*drawn, strict=True)] == [4850, 2355]


def test_nano_vllm_has_the_tokens_that_it_publishes():
    assert sum(tokens_out for _, tokens_out in nano_vllm(256)) == 133_966
    assert nano_vllm(3) == nano_vllm(256)[:3]


def test_random_prompts_are_new_each_time_and_the_same_for_a_seed():
    lengths = uniform(Range(30, 30), Range(2, 2))
    source, again = (RandomSource(lengths, 1000, seed=5) for _ in range(2))
    first, second = source.draw(4), source.draw(4)
    assert first == again.draw(4)
    assert first.prompts != second.prompts
    assert first.output_lens == second.output_lens == [2] * 4
    assert (first.num_inputs, first.num_outputs) == (120, 8)
    assert source.longest(4) == 32
    assert all(0 <= each < 1000 for prompt in first.prompts for each in prompt)
    assert RandomSource(lengths, 1000, seed="6").draw(4) != first


def test_ids_are_below_even_a_tiny_vocabulary():
    source = RandomSource(uniform(Range(99, 99), Range(1, 1)), 2, seed=0)
    assert set(source.draw(1).prompts[0]) == {0, 1}


def test_prompts_of_a_draw_have_their_beginning_in_common_and_other_draws_do_not():
    lengths = uniform(Range(12, 12), Range(1, 1))
    source = RandomSource(lengths, 10**6, seed=0, num_common=8)
    first, second = source.draw(3).prompts, source.draw(3).prompts
    assert len({tuple(prompt[:8]) for prompt in first}) == 1
    assert len({tuple(prompt[8:]) for prompt in first}) == 3
    assert first[0][:8] != second[0][:8]
    assert {len(prompt) for prompt in first} == {12}


def test_a_prompt_must_have_something_of_its_own():
    source = RandomSource(uniform(Range(8, 8), Range(1, 1)), 10, seed=0, num_common=8)
    with pytest.raises(BenchError, match="prompts of 8 tokens cannot have 8 in common"):
        source.draw(1)


def test_a_conversation_is_handed_out_once():
    requests = [([number], 10 + number) for number in range(5)]
    source, again = (ConversationSource(requests, seed=3) for _ in range(2))
    drawn = [source.draw(2), source.draw(2)]
    assert [again.draw(2), again.draw(2)] == drawn
    prompts = [prompt[0] for workload in drawn for prompt in workload.prompts]
    assert len(set(prompts)) == 4
    assert all(
        length == prompt[0] + 10
        for workload in drawn
        for prompt, length in zip(workload.prompts, workload.output_lens, strict=True)
    )
    assert source.longest(1) == 15
    with pytest.raises(BenchError, match=r"5 conversations .* 1 are left, and 2 more are needed"):
        source.draw(2)


def encode(text):
    return [len(word) for word in text.split()]


def conversation(*lengths):
    turns = [{"from": "x", "value": "w " * length} for length in lengths]
    return {"id": "a", "conversations": turns}


@pytest.fixture
def write(tmp_path):
    def written(content):
        path = tmp_path / "shared.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return written


def test_conversations_of_other_lengths_are_left_out_and_counted(write):
    kept = [conversation(4, 4), conversation(1024, 1024), conversation(10, 20, 3000)]
    left_out = [
        *(conversation(3, 9), conversation(9, 3), conversation(1025, 9), conversation(1000, 1049)),
        *(conversation(9), conversation()),
    ]
    found = read_conversations(write(kept + left_out), encode, 4096)
    assert [(len(prompt), out) for prompt, out in found.requests] == [
        (4, 4),
        (1024, 1024),
        (10, 20),
    ]
    assert found.num_left_out == 6


def test_conversations_must_fit_the_model(write):
    found = read_conversations(write([conversation(9, 9), conversation(9, 8)]), encode, 17)
    assert [(len(prompt), out) for prompt, out in found.requests] == [(9, 8)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ({}, "must be a JSON list"),
        ([], "none of 0 conversations"),
        ([conversation(1, 1)], "none of 1 conversations"),
        ([{"text": "a"}], "entry 0 must be"),
        ([conversation(9, 9), 5], "entry 1 must be"),
        ([{"conversations": [{"from": "human"}]}], "entry 0 must be"),
        ([{"conversations": [{"value": 5}]}], "entry 0: a value is no text"),
        ([{"conversations": None}], "entry 0 must be"),
    ],
)
def test_what_is_no_dataset_is_refused(content, message, write):
    with pytest.raises(BenchError, match=message):
        read_conversations(write(content), encode, 2048)


def test_a_dataset_that_is_not_there(tmp_path):
    with pytest.raises(BenchError, match=r"none\.json cannot be read: No such file"):
        read_conversations(tmp_path / "none.json", encode, 2048)
