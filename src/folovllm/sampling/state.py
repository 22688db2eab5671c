"""What the sampler keeps of a sequence from step to step."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag

from folovllm.core.plan import NewSequence
from folovllm.sampling.edits import Edits


class Stage(IntFlag):
    """What a sequence asks for beyond the most likely token."""

    NONE = 0
    RANDOM = 1
    TRUNCATED = 2
    EDITED = 4
    LOGPROBS = 8


@dataclass(slots=True)
class SamplingState:
    """A sequence's parameters as a step needs them, its random numbers and its edits.

    Attributes:
        stages: `Stage`s, as an int for speed.
        edits: what changes its logits; None when nothing does.
        num_logprobs: how many of the most likely tokens to report; -1 for none, not even the
            chosen one.
        num_prompt_logprobs: the same for the tokens of the prompt.
        factor: 1 / temperature, within what float32 can compare.
        uniform: gives the next number in [0, 1).
        log_min_p: log(min_p); -inf for no limit.
        top_k: at most the vocabulary's size, which is no limit.
        top_p: 1 for no limit.
    """

    stages: int
    edits: Edits | None
    num_logprobs: int
    num_prompt_logprobs: int
    factor: float
    uniform: Callable[[], float]
    log_min_p: float
    top_k: int
    top_p: float


def make_state(new: NewSequence, *, vocab_size: int, seeds: random.Random) -> SamplingState:
    """Find out what a sequence asks for.

    Args:
        new: the sequence.
        vocab_size: the vocabulary's size.
        seeds: seeds a sequence whose request has no seed.
    """
    spec = new.sampling
    edits = Edits(spec, new.prompt_token_ids, vocab_size)
    top_k = vocab_size if spec.top_k == -1 else min(spec.top_k, vocab_size)
    truncated = spec.min_p > 0 or top_k < vocab_size or spec.top_p < 1
    num_logprobs = _count_logprobs(spec.logprobs, vocab_size)
    stages = Stage.NONE
    if spec.temperature > 0:
        stages |= Stage.RANDOM | (Stage.TRUNCATED if truncated else 0)
    if edits.active:
        stages |= Stage.EDITED
    if num_logprobs >= 0:
        stages |= Stage.LOGPROBS
    return SamplingState(
        stages=int(stages),
        edits=edits if edits.active else None,
        num_logprobs=num_logprobs,
        num_prompt_logprobs=_count_logprobs(spec.prompt_logprobs, vocab_size),
        # 0 or infinity, which float32 would make of the extremes, could not be computed with.
        factor=1 / min(max(spec.temperature, 1e-30), 1e30),
        uniform=_generator(new, seeds).random,
        log_min_p=math.log(spec.min_p) if spec.min_p > 0 else -math.inf,
        top_k=top_k,
        top_p=spec.top_p,
    )


def _count_logprobs(count: int | None, vocab_size: int) -> int:
    if count is None:
        return -1
    return vocab_size if count == -1 else min(count, vocab_size)


def _generator(new: NewSequence, seeds: random.Random) -> random.Random:
    seed = new.sampling.seed
    if seed is None:
        return random.Random(seeds.getrandbits(128))  # noqa: S311 - nothing secret
    # `random` hashes a string with SHA-512, so that every bit of the seed and the index counts.
    return random.Random(f"{seed}-{new.place}")  # noqa: S311
