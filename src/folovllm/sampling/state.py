"""What the sampler knows of a sequence, found out when it first sees it."""

import math
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import IntFlag

from folovllm.request import Sequence
from folovllm.sampling.edits import Edits
from folovllm.sampling_params import SamplingParams

EncodeWord = Callable[[str], list[list[int]]]
"""From a bad word to the token ids that spell it, each way of spelling it."""


class Stage(IntFlag):
    """What a sequence asks for beyond the most likely token."""

    NONE = 0
    RANDOM = 1
    TRUNCATED = 2
    EDITED = 4
    LOGPROBS = 8


@dataclass(slots=True)
class SequenceState:
    """A sequence's parameters as the step needs them, and its random numbers.

    Attributes:
        stages: `Stage`s, as an int for speed.
        edits: what changes its logits; None when nothing does.
        num_logprobs: how many of the most likely tokens to report; -1 for none, not even the
            chosen one.
        factor: 1 / temperature, within what float32 can compare.
        uniform: gives the next number in [0, 1).
        log_min_p: log(min_p); -inf for no limit.
        top_k: at most the vocabulary's size, which is no limit.
        top_p: 1 for no limit.
    """

    stages: int
    edits: Edits | None
    num_logprobs: int
    factor: float
    uniform: Callable[[], float]
    log_min_p: float
    top_k: int
    top_p: float


def make_state(
    seq: Sequence,
    *,
    vocab_size: int,
    eos_token_ids: Collection[int],
    encode_word: EncodeWord | None,
    seeds: random.Random,
) -> SequenceState:
    """Find out what a sequence asks for.

    Args:
        seq: the sequence.
        vocab_size: the vocabulary's size.
        eos_token_ids: barred, with the stop ids, before `min_tokens`. With `ignore_eos` too, as
            in vLLM (`vllm/v1/sample/logits_processor/builtin.py`).
        encode_word: for bad words.
        seeds: seeds a sequence whose request has no seed.
    """
    params = seq.sampling_params
    edits = _edits(seq, vocab_size, eos_token_ids, encode_word)
    top_k = vocab_size if params.top_k == -1 else min(params.top_k, vocab_size)
    truncated = params.min_p > 0 or top_k < vocab_size or params.top_p < 1
    num_logprobs = _num_logprobs(params, vocab_size)
    stages = Stage.NONE
    if params.temperature > 0:
        stages |= Stage.RANDOM | (Stage.TRUNCATED if truncated else 0)
    if edits is not None:
        stages |= Stage.EDITED
    if num_logprobs >= 0:
        stages |= Stage.LOGPROBS
    return SequenceState(
        stages=int(stages),
        edits=edits,
        num_logprobs=num_logprobs,
        # 0 or infinity, which float32 would make of the extremes, could not be computed with.
        factor=1 / min(max(params.temperature, 1e-30), 1e30),
        uniform=_generator(seq, seeds).random,
        log_min_p=math.log(params.min_p) if params.min_p > 0 else -math.inf,
        top_k=top_k,
        top_p=params.top_p,
    )


def _edits(
    seq: Sequence, vocab_size: int, eos_token_ids: Collection[int], encode_word: EncodeWord | None
) -> Edits | None:
    params = seq.sampling_params
    words = [ids for word in params.bad_words for ids in encode_word(word)] if encode_word else []
    ends = (*eos_token_ids, *params.stop_token_ids)
    edits = Edits(params, seq.data.prompt_token_ids, words, ends, vocab_size)
    return edits if edits.lasting or edits.min_tokens else None


def _num_logprobs(params: SamplingParams, vocab_size: int) -> int:
    if params.logprobs is None:
        # Candidates are ranked by the probability of what was chosen.
        return 0 if params.best_of > params.n else -1
    return vocab_size if params.logprobs == -1 else min(params.logprobs, vocab_size)


def _generator(seq: Sequence, seeds: random.Random) -> random.Random:
    seed = seq.sampling_params.seed
    if seed is None:
        return random.Random(seeds.getrandbits(128))  # noqa: S311 - nothing secret
    index = seq.seq_id.rpartition("-")[2]
    # `random` hashes a string with SHA-512, so that every bit of the seed and the index counts.
    return random.Random(f"{seed}-{index}")  # noqa: S311
