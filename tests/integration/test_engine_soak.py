"""Thousands of random requests through a small cache: nothing is left, nothing grows."""

import gc
import os
import random
from pathlib import Path

import pytest

from folovllm import SamplingParams
from folovllm.sampling_params import RequestOutputKind

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_REQUESTS = 2000
MIB = 1 << 20
STATM = Path("/proc/self/statm")
# "cat sat", "." and the like: what the tiny vocabulary spells.
STOPS = ["cat", "sat on", ". .", "mat and", "the"]


def resident_bytes():
    """The memory of this process; 0 where the system does not tell that way."""
    if not STATM.exists():
        return 0
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def random_params(rng):
    def maybe(value, chance=0.2):
        return value if rng.random() < chance else None

    n = rng.choice([1, 1, 1, 2, 3])
    temperature = rng.choice([0.0, 0.7, 1.3])
    options = {
        "n": n,
        "best_of": maybe(n + 1, 0.1) if temperature else None,
        "temperature": temperature,
        "top_p": maybe(0.9),
        "top_k": maybe(rng.randint(1, 200)),
        "min_p": maybe(0.05),
        "presence_penalty": maybe(0.5),
        "frequency_penalty": maybe(-0.5),
        "repetition_penalty": maybe(1.2),
        "seed": maybe(rng.randrange(5)),
        "stop": maybe(rng.sample(STOPS, 2), 0.3),
        "stop_token_ids": maybe([rng.randrange(96)]),
        "bad_words": maybe(["cat sat", "mat"], 0.1),
        "logit_bias": maybe({rng.randrange(10): 3.0}, 0.3),
        "allowed_token_ids": maybe(list(range(10)), 0.3),
        "ignore_eos": rng.random() < 0.3,
        "min_tokens": maybe(2),
        "max_tokens": rng.randint(2, 12),
        "logprobs": maybe(rng.choice([0, 3, -1]), 0.1),
        "prompt_logprobs": maybe(rng.choice([0, 2]), 0.1),
        "output_kind": rng.choice(list(RequestOutputKind)),
        "truncate_prompt_tokens": maybe(rng.randint(1, 9), 0.1),
    }
    return SamplingParams(**{name: value for name, value in options.items() if value is not None})


def random_prompt(rng, prefixes):
    prefix = rng.choice(prefixes)[: rng.randint(1, 40)] if rng.random() < 0.7 else []
    return prefix + [rng.randrange(96) for _ in range(rng.randint(1, 10))]


def check_finished(out, params):
    assert out.error is None or out.error.startswith("no token is left to choose from")
    if params.output_kind is not RequestOutputKind.DELTA:
        assert len(out.outputs) == params.n
    for completion in out.outputs:
        assert completion.finish_reason in (("abort",) if out.error else ("stop", "length"))
        assert len(completion.token_ids) <= params.max_tokens


@pytest.mark.parametrize("host_blocks", [0, 20], ids=["recompute", "swap"])
def test_two_thousand_requests(make_llm, nothing_left, host_blocks):
    rng = random.Random(host_blocks)
    llm = make_llm(
        "gemma2" if host_blocks else "llama",
        num_gpu_blocks_override=40,
        host_blocks=host_blocks,
        max_num_seqs=16,
        max_num_batched_tokens=48,
        policy="priority" if host_blocks else "fcfs",
    )
    engine = llm.llm_engine
    prefixes = [[rng.randrange(96) for _ in range(40)] for _ in range(6)]
    waiting, added, finished, aborted, resident = {}, 0, 0, 0, []
    while added < NUM_REQUESTS // 2 or engine.has_unfinished_requests():
        while added < NUM_REQUESTS // 2 and len(waiting) < 24:
            params = random_params(rng)
            engine.add_request(
                f"r{added}", random_prompt(rng, prefixes), params, priority=rng.randrange(3)
            )
            waiting[f"r{added}"] = params
            added += 1
        for out in engine.step():
            if out.finished:
                check_finished(out, waiting.pop(out.request_id))
                finished += 1
        if waiting and rng.random() < 0.05:
            name = rng.choice(list(waiting))
            engine.abort_request(name)
            del waiting[name]
            aborted += 1
        steps = engine.stats()["steps"]
        if steps % 16 == 0:
            seqs = [*engine.scheduler._running, *engine.scheduler._swapped]
            engine.cache_manager.check_integrity(seqs)
        if added % 250 == 0 and len(resident) < added // 250:
            gc.collect()
            resident.append(resident_bytes())
    stats = engine.stats()
    assert finished + aborted == added == NUM_REQUESTS // 2
    assert not waiting
    assert aborted > 10
    assert stats["preemptions"] > 50
    assert stats["prefix_hits"] > 1000
    assert stats["finished_requests"] == added
    nothing_left(llm)
    gc.collect()
    # The first quarter warms up.
    assert resident_bytes() - resident[0] < 24 * MIB
