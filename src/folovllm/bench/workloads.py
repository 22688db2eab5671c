"""What is asked of a model that is measured: prompts, and how many tokens for each."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from folovllm.bench.results import BenchError
from folovllm.config.bench import Range
from folovllm.utils.files import MIB, UnusableFileError, read_text

LARGEST_DATASET = 2048 * MIB
"""Bytes; ShareGPT's conversations are 640 MiB."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that are measured together.

    Attributes:
        prompts: token ids.
        output_lens: how many tokens are to be generated for each of them.
    """

    prompts: list[list[int]]
    output_lens: list[int]

    @property
    def num_inputs(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))

    @property
    def num_outputs(self) -> int:
        """Tokens that are generated."""
        return sum(self.output_lens)


class Source(Protocol):
    """Where requests come from."""

    def draw(self, count: int) -> Workload:
        """Hand out so many requests that nobody has had: nothing of them is in a cache.

        Raises:
            BenchError: there are no more.
        """

    def longest(self, count: int) -> int:
        """Tokens of the longest sequence, prompt and output, that so many may have."""


Lengths: TypeAlias = Callable[[int], list[tuple[int, int]]]
"""For a number of requests, the tokens in and out of each: the same whenever it is asked."""


def uniform(inputs: Range, outputs: Range, seed: int = 0) -> Lengths:
    """Lengths that are equally likely within ranges."""

    def lengths(count: int) -> list[tuple[int, int]]:
        rng = random.Random(seed)  # noqa: S311 - nothing to keep secret
        tokens_in = [inputs.draw(rng) for _ in range(count)]
        return [(length, outputs.draw(rng)) for length in tokens_in]

    return lengths


def nano_vllm(count: int) -> list[tuple[int, int]]:
    """The lengths of nano-vllm's benchmark (its `bench.py`, seed 0), for up to 256 requests.

    Its generator draws a prompt's length, then its ids, then goes on to the next prompt: all 256
    prompts are drawn before the first output's length. 133,966 tokens out.
    """
    rng = random.Random(0)  # noqa: S311 - nothing to keep secret
    tokens_in = []
    for _ in range(256):
        tokens_in.append(rng.randint(100, 1024))
        for _ in range(tokens_in[-1]):
            rng.randint(0, 10_000)
    return [(length, rng.randint(100, 1024)) for length in tokens_in][:count]


class RandomSource:
    """Prompts of random token ids, of given lengths.

    Args:
        lengths: of the requests.
        vocab_size: ids are below it.
        seed: of the ids.
        num_common: tokens at the beginning that the prompts of one draw have in common; they
            are part of a prompt's length.
    """

    def __init__(
        self, lengths: Lengths, vocab_size: int, *, seed: int | str, num_common: int = 0
    ) -> None:
        """Begin."""
        self._lengths = lengths
        self._ids = range(vocab_size)
        self._rng = random.Random(seed)  # noqa: S311 - nothing to keep secret
        self._num_common = num_common

    def draw(self, count: int) -> Workload:
        """Make requests; see `Source`.

        Raises:
            BenchError: a prompt is no longer than what they have in common.
        """
        lengths = self._lengths(count)
        shortest = min(tokens_in for tokens_in, _ in lengths)
        if shortest <= self._num_common:
            raise BenchError(
                f"prompts of {shortest} tokens cannot have {self._num_common} in common: there "
                "must be something of their own"
            )
        common = self._rng.choices(self._ids, k=self._num_common)
        prompts = [
            common + self._rng.choices(self._ids, k=tokens_in - self._num_common)
            for tokens_in, _ in lengths
        ]
        return Workload(prompts, [tokens_out for _, tokens_out in lengths])

    def longest(self, count: int) -> int:
        """See `Source`."""
        return max(map(sum, self._lengths(count)))


class ConversationSource:
    """Requests out of conversations, each handed out once.

    Args:
        requests: prompts, and how long the answers were.
        seed: of the order.
    """

    def __init__(self, requests: list[tuple[list[int], int]], *, seed: int | str) -> None:
        """Shuffle."""
        self._left = list(requests)
        self._num_requests = len(requests)
        self._longest = max(len(prompt) + length for prompt, length in requests)
        random.Random(seed).shuffle(self._left)  # noqa: S311 - nothing to keep secret

    def draw(self, count: int) -> Workload:
        """Hand out the next; see `Source`."""
        if count > len(self._left):
            raise BenchError(
                f"the dataset has {self._num_requests} conversations that can be used, of which "
                f"{len(self._left)} are left, and {count} more are needed: a prompt that comes "
                "again would be found in the cache; take fewer requests or a larger dataset"
            )
        taken, self._left = self._left[:count], self._left[count:]
        return Workload([prompt for prompt, _ in taken], [length for _, length in taken])

    def longest(self, count: int) -> int:  # noqa: ARG002 - whichever they are
        """See `Source`."""
        return self._longest


@dataclass(frozen=True, slots=True)
class Conversations:
    """What a dataset's file has.

    Attributes:
        requests: token ids of what is asked, and how many tokens the answer has.
        num_left_out: conversations that were too short or too long.
    """

    requests: list[tuple[list[int], int]]
    num_left_out: int


MIN_TOKENS = 4
MAX_PROMPT = 1024
MAX_TOTAL = 2048
"""Of a conversation; the rule of vLLM's benchmark (`vllm/benchmarks/datasets.py`)."""


def read_conversations(
    path: Path, encode: Callable[[str], list[int]], max_model_len: int
) -> Conversations:
    """Read a file of ShareGPT's form; of each conversation the first two turns are taken.

    `[{"conversations": [{"from": "human", "value": TEXT}, {"from": "gpt", "value": TEXT}]}]`

    Args:
        path: the file.
        encode: makes token ids of a text.
        max_model_len: most tokens of a sequence.

    Raises:
        BenchError: it cannot be read, is of another form, or nothing of it can be used.
    """
    limit = min(MAX_TOTAL, max_model_len)
    requests, num_left_out = [], 0
    for question, answer in _turns(path):
        prompt, num_outputs = encode(question), len(encode(answer))
        fits = len(prompt) <= MAX_PROMPT and len(prompt) + num_outputs <= limit
        if fits and min(len(prompt), num_outputs) >= MIN_TOKENS:
            requests.append((prompt, num_outputs))
        else:
            num_left_out += 1
    if not requests:
        raise BenchError(
            f"{path}: none of {num_left_out} conversations can be used: a question and its answer "
            f"need {MIN_TOKENS} tokens each, the question at most {MAX_PROMPT}, both {limit}"
        )
    return Conversations(requests, num_left_out)


def _turns(path: Path) -> Iterator[tuple[str, str]]:
    """The first two turns of each conversation, empty where there are none."""
    try:
        content: Any = json.loads(read_text(path, LARGEST_DATASET, pipes=True))
    except UnusableFileError as error:
        raise BenchError(f"the dataset {path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BenchError(f"the dataset {path} is no JSON: {error}") from error
    if not isinstance(content, list):
        raise BenchError(f"the dataset {path} must be a JSON list of conversations")
    for place, entry in enumerate(content):
        try:
            turns = [turn["value"] for turn in entry["conversations"][:2]]
        except (KeyError, TypeError) as error:
            raise BenchError(
                f'{path}: entry {place} must be {{"conversations": [{{"from": "human", "value": '
                "TEXT}, ...]}"
            ) from error
        if not all(isinstance(turn, str) for turn in turns):
            raise BenchError(f"{path}: entry {place}: a value is no text")
        question, answer = [*turns, "", ""][:2]
        yield question, answer
