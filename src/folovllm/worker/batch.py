"""One step's tokens laid out as a flat batch, on the host."""

from dataclasses import dataclass
from itertools import chain

import numpy as np

from folovllm.core.plan import ScheduledSequence, SchedulerOutput
from folovllm.request import Sequence


@dataclass(frozen=True, slots=True)
class Batch:
    """What the model is run on, still on the host: T tokens of B sequences.

    Attributes:
        token_ids: int64, `[T]`.
        positions: of each token in its sequence; int64, `[T]`.
        slots: of each token in the cache, block * block_size + offset; int64, `[T]`.
        query_lens: tokens of each sequence in this step.
        seq_lens: tokens of each sequence up to and with this step's.
        block_ids: the cache blocks of each sequence.
        logit_rows: of which tokens logits are wanted: first those to sample from, one for each
            scheduled sequence that samples, then those of prompts.
        sampling_rows: for each token to sample, its row among the logits, in the order of the
            plan's `samples`; a row stands several times when sequences fork.
        prompt_parts: whose prompt logprobs are wanted, and which rows are theirs.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    query_lens: list[int]
    seq_lens: list[int]
    block_ids: list[list[int]]
    logit_rows: list[int]
    sampling_rows: list[int]
    prompt_parts: list["PromptPart"]

    @property
    def decodes(self) -> bool:
        """Whether every sequence has one token here, and is sampled from."""
        count = len(self.query_lens)
        return len(self.token_ids) == count == len(self.logit_rows) and not self.prompt_parts


@dataclass(frozen=True, slots=True)
class PromptPart:
    """Prompt positions computed in this step that predict a token of the prompt.

    Attributes:
        seq: the sequence.
        rows: of the logits.
        next_tokens: what really follows at each position.
    """

    seq: Sequence
    rows: range
    next_tokens: list[int]


def make_batch(plan: SchedulerOutput, block_size: int) -> Batch:
    """Lay out a step's tokens in the order of its plan."""
    entries = plan.scheduled
    token_ids = np.fromiter(chain.from_iterable(map(_token_ids, entries)), np.int64)
    starts = np.array([entry.start for entry in entries])
    counts = np.array([entry.num_tokens for entry in entries])
    ends = counts.cumsum()
    # Each token's position: the start of its sequence, and how far it is into its part.
    positions = np.arange(plan.num_tokens) + np.repeat(starts - ends + counts, counts)
    rows, sampling_rows = _sampling_rows(entries, ends.tolist())
    prompt_parts = _prompt_parts(entries, (ends - counts).tolist(), rows)
    return Batch(
        token_ids,
        positions,
        _slots(entries, positions, counts, block_size),
        counts.tolist(),
        (starts + counts).tolist(),
        [entry.block_ids for entry in entries],
        rows,
        sampling_rows,
        prompt_parts,
    )


def _token_ids(entry: ScheduledSequence) -> list[int]:
    """The tokens of a sequence that are computed now."""
    data, start, end = entry.seq.data, entry.start, entry.start + entry.num_tokens
    prompt_len = len(data.prompt_token_ids)
    if start >= prompt_len:
        return data.output_token_ids[start - prompt_len : end - prompt_len]
    outputs = data.output_token_ids[: end - prompt_len] if end > prompt_len else []
    return data.prompt_token_ids[start:end] + outputs


def _slots(
    entries: tuple[ScheduledSequence, ...],
    positions: np.ndarray,
    counts: np.ndarray,
    block_size: int,
) -> np.ndarray:
    """The cache slot of each token."""
    if len(positions) == len(entries):  # all decode: one block each
        blocks = np.array(
            [entry.block_ids[entry.start // block_size] for entry in entries], np.int64
        )
    else:
        tables = [entry.block_ids for entry in entries]
        flat = np.fromiter(chain.from_iterable(tables), np.int64)
        lengths = np.array([len(table) for table in tables])
        offsets = np.repeat(lengths.cumsum() - lengths, counts)
        blocks = flat[offsets + positions // block_size]
    result: np.ndarray = blocks * block_size + positions % block_size
    return result


def _sampling_rows(
    entries: tuple[ScheduledSequence, ...], ends: list[int]
) -> tuple[list[int], list[int]]:
    """The tokens whose logits are sampled from, and for each sample its row among those."""
    rows: list[int] = []
    sampling_rows: list[int] = []
    for entry, end in zip(entries, ends, strict=True):
        if entry.samples:
            sampling_rows += [len(rows)] * len(entry.samples)
            rows.append(end - 1)
    return rows, sampling_rows


def _prompt_parts(
    entries: tuple[ScheduledSequence, ...], firsts: list[int], rows: list[int]
) -> list[PromptPart]:
    """The parts of prompts whose logprobs are wanted; their tokens are appended to `rows`."""
    parts = []
    for entry, first in zip(entries, firsts, strict=True):
        seq = entry.seq
        # The prompt's last position predicts the first output.
        end = min(entry.start + entry.num_tokens, seq.get_prompt_len() - 1)
        count = end - entry.start
        if seq.sampling_params.prompt_logprobs is not None and count > 0:
            next_tokens = seq.data.prompt_token_ids[entry.start + 1 : end + 1]
            parts.append(PromptPart(seq, range(len(rows), len(rows) + count), next_tokens))
            rows.extend(range(first, first + count))
    return parts
