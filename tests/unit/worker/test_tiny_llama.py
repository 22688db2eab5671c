"""Plans by hand through a real model, held against transformers' own forward."""

import pytest
import torch

from folovllm.executor.local import LocalExecutor
from folovllm.sampling_params import SamplingSpec
from tests.unit.worker.plans import GREEDY, make_runner, new, part, plan, tiny_llama

PROMPT = [7, 3, 91, 15, 22, 8, 60, 4, 33, 51, 2]
OTHER = [5, 44, 17]
LOGPROBS = SamplingSpec(temperature=0, logprobs=0)


@pytest.fixture(scope="module")
def theirs():
    return tiny_llama()


@pytest.fixture
def executor():
    return LocalExecutor(make_runner(tiny_llama(), num_host_blocks=10))


def expect(theirs, tokens):
    """The most likely token after these, and its log probability."""
    with torch.no_grad():
        logits = theirs(torch.tensor([tokens])).logits[0, -1].double()
    best = int(logits.argmax())
    return best, float(logits.log_softmax(-1)[best])


class Sequence:
    """Follows a sequence through plans, a token at a time, and what transformers makes of it."""

    def __init__(self, theirs, seq_id, tokens, blocks):
        self.theirs, self.seq_id = theirs, seq_id
        self.tokens, self.blocks = list(tokens), list(blocks)

    def decode(self, **changes):
        return part(self.seq_id, len(self.tokens) - 1, self.tokens[-1:], **changes)

    def check(self, token_ids, logprobs):
        token, logprob = expect(self.theirs, self.tokens)
        assert token_ids == [token]
        assert logprobs[0][token].logprob == pytest.approx(logprob, abs=1e-4)
        self.tokens.append(token)


def check(result, *seqs):
    assert not result.failed
    for seq, ids, logprobs in zip(seqs, result.token_ids, result.logprobs, strict=True):
        seq.check(ids, logprobs)


def test_in_chunks_beside_another_and_on(theirs, executor):
    one = Sequence(theirs, "a", PROMPT, [3, 9, 5])
    two = Sequence(theirs, "b", OTHER, [7])
    step = executor.execute
    meet = new("a", LOGPROBS), new("b", LOGPROBS)
    result = step(plan(part("a", 0, PROMPT[:5], [3, 9], samples=()), meet=meet[:1]))
    assert result.token_ids == []
    assert result.logprobs is None
    rest, other = part("a", 5, PROMPT[5:], [5], first=2), part("b", 0, OTHER, [7])
    check(step(plan(rest, other, meet=meet[1:])), one, two)
    check(step(plan(one.decode(first=3), two.decode(first=1))), one, two)
    # Both need another block now.
    check(step(plan(two.decode(first=1, blocks=[8]), one.decode(first=3, blocks=[2]))), two, one)
    check(step(plan(one.decode(first=4))), one)


def test_a_fork_goes_on_by_itself(theirs, executor):
    """The last block of the prompt is copied for the second sequence, the others are shared."""
    one, two = (Sequence(theirs, name, PROMPT, []) for name in "ab")
    meet = new("a", LOGPROBS), new("b", LOGPROBS, index=1)
    fork = part("a", 0, PROMPT, [3, 9, 5], samples=["a", "b"])
    check(executor.execute(plan(fork, meet=meet)), one, two)
    two.tokens[-1] = 40  # as if something else had been sampled
    entries = one.decode(first=3), two.decode(blocks=[3, 9, 6])
    check(executor.execute(plan(*entries, copies=((5, 6),))), one, two)
    check(executor.execute(plan(two.decode(first=3, blocks=[1]))), two)
    check(executor.execute(plan(one.decode(first=3, blocks=[4]))), one)


def test_preempted_and_computed_again(theirs, executor):
    one, two = Sequence(theirs, "a", PROMPT, []), Sequence(theirs, "b", OTHER, [])
    meet = new("a", LOGPROBS), new("b", LOGPROBS)
    entries = part("a", 0, PROMPT, [3, 9, 5]), part("b", 0, OTHER, [7])
    check(executor.execute(plan(*entries, meet=meet)), one, two)
    check(executor.execute(plan(one.decode(first=3))), one)
    # It loses its blocks, which go to the other, and comes back with as many others.
    check(executor.execute(plan(two.decode(first=1))), two)
    check(executor.execute(plan(two.decode(first=1, blocks=[5]))), two)
    again = part("a", 0, one.tokens, [1, 2, 3, 4])
    check(executor.execute(plan(again, two.decode(first=2))), one, two)
    check(executor.execute(plan(one.decode(first=4))), one)


def test_swapped_out_and_in(theirs, executor):
    one = Sequence(theirs, "a", PROMPT, [])
    check(executor.execute(plan(part("a", 0, PROMPT, [3, 9, 5]), meet=[new("a", LOGPROBS)])), one)
    moves = ((3, 0), (9, 4), (5, 2))
    other = part("b", 0, OTHER * 4, [3, 9, 5])
    executor.execute(plan(other, meet=[new("b")], swap_out=moves))
    back = one.decode(blocks=[8, 1, 6])
    check(executor.execute(plan(back, swap_in=((0, 8), (4, 1), (2, 6)))), one)


def test_what_is_not_finite_is_cleared(theirs, executor):
    for layer in executor.runner.cache.layers:
        for pages in layer:
            pages[[3, 5]] = torch.nan
    one = Sequence(theirs, "a", OTHER, [])
    entry = part("a", 0, OTHER, [5])
    check(executor.execute(plan(entry, meet=[new("a", LOGPROBS)], clear=(3, 5))), one)
    check(executor.execute(plan(one.decode(first=1))), one)
    assert executor.runner.cache.layers[0].keys[3].eq(0).all()


def test_the_log_probabilities_of_a_prompt_in_chunks(theirs, executor):
    spec = SamplingSpec(temperature=0, prompt_logprobs=2)
    first = part("a", 0, PROMPT[:4], [1], samples=(), targets=PROMPT[1:5])
    found = executor.execute(plan(first, meet=[new("a", spec)])).prompt_logprobs["a"]
    rest = part("a", 4, PROMPT[4:], [2, 3], first=1, targets=PROMPT[5:])
    other = part("b", 0, OTHER, [4])
    result = executor.execute(plan(other, rest, meet=[new("b")]))
    found += result.prompt_logprobs["a"]
    assert [ids[0] for ids in result.token_ids] == [expect(theirs, x)[0] for x in (OTHER, PROMPT)]
    with torch.no_grad():
        expected = theirs(torch.tensor([PROMPT])).logits[0].double().log_softmax(-1)
    assert len(found) == len(PROMPT) - 1
    for position, (token, entries) in enumerate(zip(PROMPT[1:], found, strict=True)):
        assert len(entries) in (2, 3)
        assert entries[token].logprob == pytest.approx(float(expected[position, token]), abs=1e-4)


def test_nobody_runs(executor):
    assert executor.execute(plan()).token_ids == []
    executor.execute(plan(part("a", 0, OTHER, [4]), meet=[new("a")]))
    result = executor.execute(plan(finished=("a", "never-seen")))
    assert (result.token_ids, result.logprobs, result.failed) == ([], None, {})
    with pytest.raises(KeyError):
        executor.execute(plan(part("a", 3, [1], first=1)))


def test_finished_and_new_at_once(theirs, executor):
    """Nothing is left of the first: neither its blocks, nor its output, nor its numbers."""
    spec = SamplingSpec(temperature=0, repetition_penalty=1e9)
    drawn = SamplingSpec(seed=3)
    meet = new("a", spec, OTHER), new("b", drawn)
    entries = part("a", 0, OTHER, [4]), part("b", 0, OTHER, [5])
    first = executor.execute(plan(*entries, meet=meet)).token_ids
    executor.execute(plan(part("a", 3, first[0], first=1), part("b", 3, first[1], first=1)))
    again = plan(*entries, meet=meet, finished=("a", "b"))
    assert executor.execute(again).token_ids == first


def test_drafts_are_refused(executor):
    drafted = part("a", 0, [1, 2, 3], [4], drafts=2)
    with pytest.raises(NotImplementedError, match="drafts"):
        executor.execute(plan(drafted, meet=[new("a", GREEDY)]))


def test_shutdown():
    executor = LocalExecutor(make_runner(tiny_llama(), num_blocks=6, num_host_blocks=2))
    assert (executor.num_blocks, executor.num_host_blocks) == (6, 2)
    executor.shutdown()
    executor.shutdown()
    assert not hasattr(executor, "runner")
