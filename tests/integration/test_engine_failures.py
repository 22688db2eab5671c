"""A step that fails ends the requests that it touches, and no others."""

import re
import threading

import pytest
import torch

from folovllm import EngineDeadError, SamplingParams
from folovllm.engine.request_state import RequestState, SequenceState
from folovllm.sampling_params import RequestOutputKind

pytestmark = pytest.mark.usefixtures("one_thread")

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
PROMPTS = [[5, 7, 9, 11, 13], [20, 21, 22, 23, 24, 25, 26, 27, 28], [40]]
POISON = 90  # a token whose embedding holds NaN


def tokens_of(llm, prompts=PROMPTS, params=GREEDY):
    return [out.outputs[0].token_ids for out in llm.generate(prompts, params, use_tqdm=False)]


def drive(engine):
    """Step until everything is finished; the last output of each request."""
    outputs = {}
    while engine.has_unfinished_requests():
        outputs.update((out.request_id, out) for out in engine.step())
    return outputs


def poison(llm):
    embeddings = llm.llm_engine.executor.runner.model.model.get_input_embeddings()
    with torch.no_grad():
        embeddings.weight[POISON] = float("nan")


def fail_once(llm, monkeypatch, error, *, at=0, after=False):
    """Let the step `at` from now raise, before or after the model was run."""
    model = llm.llm_engine.executor.runner.model
    forward = model.forward
    calls = iter(range(10**6))

    def failing(*args):
        number = next(calls)
        result = forward(*args) if number != at or after else None
        if number == at:
            raise error
        return result

    monkeypatch.setattr(model, "forward", failing)


MEMORY = "lower max_num_batched_tokens"
ERRORS = {
    "MemoryError": (MemoryError(), f"MemoryError.*{MEMORY}"),
    "torch": (torch.OutOfMemoryError("CUDA out of memory. Tried to\nallocate"), MEMORY),
    "allocator": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), MEMORY),
    "another": (IndexError("index 7 is out of range"), "IndexError: index 7 is out of range$"),
}


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("after", [False, True])
def test_the_model_raises(make_llm, monkeypatch, kind, at, after):
    error, message = ERRORS[kind]
    expected = tokens_of(make_llm())
    llm = make_llm()
    fail_once(llm, monkeypatch, error, at=at, after=after)
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    for out, tokens in zip(outputs, expected, strict=True):
        assert out.finished
        assert out.outputs[0].finish_reason == "abort"
        assert out.outputs[0].token_ids == tokens[:at]
        assert out.error.startswith("a step of")
        assert re.search(message, out.error)
    assert llm.stats()["failed_requests"] == 3
    # What the failed step was to write is found by nobody.
    assert tokens_of(llm) == expected


def test_those_that_were_not_part_of_it_go_on(make_llm, monkeypatch):
    expected = tokens_of(make_llm())
    llm = make_llm(max_num_seqs=2)
    fail_once(llm, monkeypatch, MemoryError(), at=2)
    first, second, third = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert first.error
    assert second.error
    assert third.error is None
    assert third.outputs[0].token_ids == expected[2]


def test_those_that_were_swapped_out_by_it_go_on(make_llm, monkeypatch):
    expected = tokens_of(make_llm())
    llm = make_llm(num_gpu_blocks_override=7, host_blocks=9)
    failed = []

    def execute(plan):
        if plan.swap_out and not failed:
            failed.append(plan)
            raise MemoryError
        return run(plan)

    run = llm.llm_engine.executor.execute
    monkeypatch.setattr(llm.llm_engine.executor, "execute", execute)
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert failed
    assert {out.error is None for out in outputs} == {True, False}
    for out, tokens in zip(outputs, expected, strict=True):
        assert out.error or out.outputs[0].token_ids == tokens
    assert tokens_of(llm) == expected


def test_a_step_is_told_by_its_size(make_llm, monkeypatch):
    llm = make_llm()
    fail_once(llm, monkeypatch, torch.OutOfMemoryError("CUDA out of memory."), at=1)
    (error,) = {out.error for out in llm.generate(PROMPTS, GREEDY, use_tqdm=False)}
    assert error == (
        "a step of 3 tokens of 3 sequences, the longest of 10 tokens, failed: OutOfMemoryError: "
        "CUDA out of memory.; lower max_num_batched_tokens, max_num_seqs or gpu_memory_utilization"
    )


LOST = {
    "torch": torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    "older": RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with"),
    "triton": RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
}


@pytest.mark.parametrize("kind", LOST)
def test_a_lost_device(make_llm, monkeypatch, kind):
    llm = make_llm()
    fail_once(llm, monkeypatch, LOST[kind], at=1)
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    for out in outputs:
        assert out.finished
        assert out.error.startswith("a step of 3 tokens of 3 sequences")
        assert "`folovllm verify-cuda`" in out.error
    with pytest.raises(EngineDeadError, match=r"illegal memory access.*start it anew"):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    with pytest.raises(EngineDeadError):
        llm.llm_engine.add_request("r", [5], GREEDY)
    with pytest.raises(EngineDeadError):
        llm.llm_engine.step()


def test_nobody_waits_for_a_lost_device(make_llm, monkeypatch):
    """Threads whose requests were not part of the step that lost it are told as well."""
    llm = make_llm(max_num_seqs=2)
    fail_once(llm, monkeypatch, LOST["torch"], at=4)
    ends = []

    def generate(prompt):
        try:
            (out,) = llm.generate([prompt], GREEDY, use_tqdm=False)
            ends.append(out.error)
        except EngineDeadError as error:
            ends.append(str(error))

    prompts = [*PROMPTS, [50, 51], [52]]
    threads = [threading.Thread(target=generate, args=(prompt,), daemon=True) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert len(ends) == len(prompts)
    assert all("illegal memory access" in end for end in ends)


def test_ctrl_c(make_llm, monkeypatch):
    expected = tokens_of(make_llm())
    llm = make_llm()
    fail_once(llm, monkeypatch, KeyboardInterrupt(), at=2)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert not llm.llm_engine.has_unfinished_requests()
    assert tokens_of(llm) == expected


def test_ctrl_c_between_the_plan_and_its_execution(make_llm, monkeypatch):
    """What was planned was made findable, and must not be found: it was never computed."""
    expected = tokens_of(make_llm())
    llm = make_llm()

    def interrupted(plan):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(llm.llm_engine.executor, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert not llm.llm_engine.has_unfinished_requests()
    assert tokens_of(llm) == expected


def test_ctrl_c_while_requests_are_added(make_llm, monkeypatch):
    llm = make_llm()
    process, calls = llm.llm_engine.input_processor.process, []

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return process(*args, **options)

    monkeypatch.setattr(llm.llm_engine.input_processor, "process", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert len(calls) == 3
    assert not llm.llm_engine.has_unfinished_requests()


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("where", ["schedule", "update"])
def test_the_books_are_spoilt(make_llm, monkeypatch, error, where):
    llm = make_llm()

    def fail(*_):
        raise error

    monkeypatch.setattr(llm.llm_engine.scheduler, where, fail)
    with pytest.raises(type(error)):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    with pytest.raises(EngineDeadError, match=type(error).__name__):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 4}], ids=["whole", "chunked"])
def test_nan_in_one_of_several(make_llm, family, options):
    llm = make_llm(family, num_gpu_blocks_override=17, **options)
    expected = tokens_of(llm)
    poison(llm)
    bad = [*range(3, 15), POISON, 4, 3]
    outputs = llm.generate([*PROMPTS, bad], GREEDY, use_tqdm=False)
    assert outputs[3].error == "the model's logits hold NaN"
    assert outputs[3].outputs[0].token_ids == []
    assert outputs[3].outputs[0].finish_reason == "abort"
    assert [out.error for out in outputs[:3]] == [None] * 3
    assert [out.outputs[0].token_ids for out in outputs[:3]] == expected
    # Its blocks are found by nobody, and harm nobody who gets them next.
    clean = bad[:12]
    again = llm.generate([clean, bad], GREEDY, use_tqdm=False)
    assert again[0].error is None
    assert again[1].error
    for _ in range(3):
        assert tokens_of(llm) == expected


def test_nan_that_was_generated(make_llm):
    llm = make_llm(num_gpu_blocks_override=17)
    expected = tokens_of(llm)
    poison(llm)
    lure = SamplingParams(temperature=0, max_tokens=8, allowed_token_ids=[POISON], ignore_eos=True)
    several = SamplingParams(max_tokens=8, n=3, logit_bias={POISON: 100.0}, ignore_eos=True)
    params = [GREEDY, lure, GREEDY, GREEDY, several]
    outputs = llm.generate([PROMPTS[0], [30, 31], *PROMPTS[1:], [33]], params, use_tqdm=False)
    assert outputs[1].outputs[0].token_ids == [POISON]
    assert outputs[1].error
    assert outputs[4].error
    good = [outputs[0], *outputs[2:4]]
    assert [out.outputs[0].token_ids for out in good] == expected
    assert tokens_of(llm) == expected


def test_no_token_left_to_choose(make_llm):
    llm = make_llm()
    expected = tokens_of(llm)
    none = SamplingParams(temperature=0, allowed_token_ids=[9], min_tokens=2)  # 9 is the end
    outputs = llm.generate([*PROMPTS, [5]], [GREEDY] * 3 + [none], use_tqdm=False)
    assert "no token is left to choose from" in outputs[3].error
    assert [out.outputs[0].token_ids for out in outputs[:3]] == expected


def test_the_engine_driven_by_hand_tells_of_failures(make_llm, monkeypatch):
    llm = make_llm()
    engine = llm.llm_engine
    engine.add_request("a", [5], GREEDY)
    fail_once(llm, monkeypatch, MemoryError())
    engine.add_request("b", [6], SamplingParams(n=3))
    outputs = drive(engine)
    assert {name: len(out.outputs) for name, out in outputs.items()} == {"a": 1, "b": 3}
    assert all(MEMORY in out.error for out in outputs.values())


def break_for(monkeypatch, where, name):
    """Let a method of the text side raise for one request."""
    method = getattr(where, name)

    def failing(self, *args, **options):
        if (self.seq if hasattr(self, "seq") else self).request.request_id.startswith("1-"):
            raise ZeroDivisionError("theirs")
        return method(self, *args, **options)

    monkeypatch.setattr(where, name, failing)


PARTS = {
    "token": (SequenceState, "add", "its text could not be made"),
    "output": (RequestState, "make_output", "its output could not be made"),
    "candidate": (SequenceState, "make_output", "its output could not be made"),
    "prompt": (RequestState, "add_prompt_logprobs", "the text of its prompt's tokens"),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", RequestOutputKind)
@pytest.mark.parametrize("options", [{}, {"n": 3, "temperature": 1, "seed": 1}], ids=["one", "n"])
def test_the_text_of_one_of_several_fails(make_llm, monkeypatch, part, kind, options):
    llm = make_llm()
    expected = tokens_of(llm)
    where, name, message = PARTS[part]
    break_for(monkeypatch, where, name)
    engine, outputs = llm.llm_engine, {}
    broken = GREEDY.checked_copy(output_kind=kind, prompt_logprobs=0, **options)
    for i, (prompt, params) in enumerate(zip(PROMPTS, [GREEDY, broken, GREEDY], strict=True)):
        engine.add_request(f"{i}-", prompt, params)
    outputs = drive(engine)
    assert re.match(f"{message}.*: ZeroDivisionError: theirs", outputs["1-"].error)
    assert outputs["1-"].finished
    assert len(outputs["1-"].outputs) == broken.n
    for place in (0, 2):
        assert outputs[f"{place}-"].outputs[0].token_ids == expected[place]
    assert engine.stats()["failed_requests"] == 1


@pytest.mark.parametrize("at", [1, 3, 8])
def test_a_callback_raises(make_llm, at):
    llm = make_llm()
    engine, seen = llm.llm_engine, []

    def deliver(output):
        seen.append(output)
        if len(seen) == at:
            raise KeyError("theirs")

    expected = tokens_of(llm)
    engine.add_request("bad", PROMPTS[0], GREEDY, deliver=deliver)
    engine.add_request("good", PROMPTS[1], GREEDY)
    outputs = drive(engine)
    assert len(seen) == at
    assert outputs["bad"].finished
    assert outputs["good"].outputs[0].token_ids == expected[1]
    if at < 8:
        assert outputs["bad"].error == "its deliver callback raised: KeyError: 'theirs'"
        assert outputs["bad"].outputs[0].finish_reason == "abort"
        assert outputs["bad"].outputs[0].token_ids == expected[0][:at]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit()], ids=repr)
def test_ctrl_c_in_a_callback(make_llm, error):
    """It ends the request of the callback, and comes out of the step."""
    llm = make_llm()
    engine, expected, inbox = llm.llm_engine, tokens_of(llm), []

    def deliver(output):
        raise error

    engine.add_request("bad", PROMPTS[0], GREEDY, deliver=deliver)
    engine.add_request("good", PROMPTS[1], GREEDY, deliver=inbox.append)
    with pytest.raises(type(error)):
        engine.step()
    drive(engine)
    assert inbox[-1].outputs[0].token_ids == expected[1]


def test_a_callback_raises_when_it_is_told_of_an_abort(make_llm):
    llm = make_llm()

    def deliver(output):
        if output is None:
            raise KeyError("theirs")

    llm.llm_engine.add_request("bad", PROMPTS[0], GREEDY, deliver=deliver)
    llm.llm_engine.step()
    llm.llm_engine.abort_request("bad")
    assert llm.llm_engine.cache_manager.usage == 0
