from hypothesis import given, settings, strategies as st

from folovllm.core.plan import ScheduledSequence, SchedulerOutput
from folovllm.request import Sequence, SequenceData
from folovllm.sampling_params import SamplingParams
from folovllm.worker.batch import make_batch


def sequence(prompt, outputs=(), blocks=(), name="r-0", **params):
    data = SequenceData(prompt, list(outputs))
    return Sequence(name, "r", data, SamplingParams(**params), block_ids=list(blocks))


def plan_of(*entries):
    return SchedulerOutput(entries, sum(entry.num_tokens for entry in entries))


@st.composite
def plans(draw):
    block_size = draw(st.sampled_from([1, 3, 16]))
    entries = []
    blocks = iter(range(1, 10_000))
    for i in range(draw(st.integers(1, 6))):
        prompt = draw(st.lists(st.integers(0, 99), min_size=1, max_size=40))
        outputs = draw(st.lists(st.integers(100, 199), max_size=10))
        length = len(prompt) + len(outputs)
        start = draw(st.integers(0, length - 1))
        count = draw(st.integers(1, length - start))
        table = [next(blocks) for _ in range(-(-length // block_size))]
        seq = sequence(
            prompt, outputs, table, f"{i}-0", prompt_logprobs=draw(st.sampled_from([None, 1]))
        )
        samples = (seq,) * draw(st.integers(1, 3)) if start + count == length else ()
        entries.append(ScheduledSequence(seq, start, count, samples, seq.block_ids))
    return plan_of(*entries), block_size


@settings(max_examples=150, deadline=None)
@given(plans())
def test_lays_out_every_token_once(case):
    plan, block_size = case
    batch = make_batch(plan, block_size)
    ids, positions, slots = [], [], []
    for entry in plan.scheduled:
        for position in range(entry.start, entry.start + entry.num_tokens):
            ids.append(entry.seq.get_token_ids()[position])
            positions.append(position)
            block = entry.seq.block_ids[position // block_size]
            slots.append(block * block_size + position % block_size)
    assert batch.token_ids.tolist() == ids
    assert batch.positions.tolist() == positions
    assert batch.slots.tolist() == slots
    assert batch.query_lens == [e.num_tokens for e in plan.scheduled]
    assert batch.seq_lens == [e.start + e.num_tokens for e in plan.scheduled]


@settings(max_examples=150, deadline=None)
@given(plans())
def test_asks_for_the_logits_that_are_needed(case):
    plan, block_size = case
    batch = make_batch(plan, block_size)
    last, places, first = [], [], 0
    for entry in plan.scheduled:
        if entry.samples:
            places += [first + entry.num_tokens - 1] * len(entry.samples)
        first += entry.num_tokens
        last.append(first - 1)
    rows = batch.logit_rows
    assert [rows[i] for i in batch.sampling_rows] == places
    for part in batch.prompt_parts:
        for row, next_token in zip(part.rows, part.next_tokens, strict=True):
            position = int(batch.positions[rows[row]])
            assert part.seq.data.prompt_token_ids[position + 1] == next_token


def test_the_last_prompt_position_predicts_no_prompt_token():
    seq = sequence([5, 6, 7], blocks=[1], prompt_logprobs=0)
    batch = make_batch(plan_of(ScheduledSequence(seq, 0, 3, (seq,), seq.block_ids)), 16)
    assert [part.next_tokens for part in batch.prompt_parts] == [[6, 7]]
    assert batch.logit_rows == [2, 0, 1]


def test_outputs_are_never_prompt_positions():
    seq = sequence([5, 6], [8, 9], [1], prompt_logprobs=0)
    batch = make_batch(plan_of(ScheduledSequence(seq, 3, 1, (seq,), seq.block_ids)), 16)
    assert batch.prompt_parts == []
