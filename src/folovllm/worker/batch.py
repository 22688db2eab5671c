"""From a plan to the batch that the model is run on, and to the logits that are wanted of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from folovllm.attention.batch import Batch, lay_out
from folovllm.core.plan import ScheduledSequence
from folovllm.worker.block_tables import BlockTables

_TOKEN_IDS, _START = attrgetter("token_ids"), attrgetter("start")


class PromptRows(NamedTuple):
    """Logits that predict tokens of a prompt.

    Attributes:
        seq_id: of the sequence.
        rows: which logits.
        targets: the tokens of the prompt that follow, one a row.
    """

    seq_id: str
    rows: range
    targets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LogitRows:
    """Which tokens' logits are wanted, and what for.

    Attributes:
        tokens: places in the batch: first those to sample from, one for each scheduled sequence
            that samples, then those of prompts.
        seq_ids: the sequences that get a token, in the order of the plan.
        sampled: of each of them, its row among the logits; a row stands several times when
            sequences fork at the end of their prompt.
        prompts: whose prompt's log probabilities are wanted.
    """

    tokens: list[int]
    seq_ids: list[str]
    sampled: list[int]
    prompts: list[PromptRows]


def make_batch(entries: Sequence[ScheduledSequence], tables: BlockTables, block_size: int) -> Batch:
    """Lay out a step's tokens in the order of its plan; there is at least one.

    Args:
        entries: what is scheduled.
        tables: takes over the entries' blocks.
        block_size: tokens in a block.
    """
    token_ids = list(map(_TOKEN_IDS, entries))
    starts = np.array(list(map(_START, entries)), np.int64)
    counts = np.array(list(map(len, token_ids)), np.int64)
    rows = tables.update(entries)
    width = -(-int((starts + counts).max()) // block_size)
    flat = np.fromiter(chain.from_iterable(token_ids), np.int64)
    return lay_out(flat, starts, counts, tables.select(rows, width), block_size)


def find_logit_rows(entries: Sequence[ScheduledSequence]) -> LogitRows:
    """Find the logits that a step's samples and prompts need.

    Raises:
        NotImplementedError: there are drafts, whose verification is not written yet.
    """
    tokens: list[int] = []
    seq_ids: list[str] = []
    sampled: list[int] = []
    asked: list[tuple[int, ScheduledSequence]] = []
    end = 0
    for entry in entries:
        _, _, token_ids, _, _, samples, num_drafts, targets = entry  # at once: that is faster
        if num_drafts:
            raise NotImplementedError(f"{entry.seq_id}: drafts cannot be verified yet")
        if targets:
            asked.append((end, entry))
        end += len(token_ids)
        if samples:
            row = len(tokens)
            for seq_id in samples:
                seq_ids.append(seq_id)
                sampled.append(row)
            tokens.append(end - 1)
    return LogitRows(tokens, seq_ids, sampled, _prompt_rows(asked, tokens))


def _prompt_rows(asked: list[tuple[int, ScheduledSequence]], tokens: list[int]) -> list[PromptRows]:
    """Add the tokens of prompts, each part of which begins somewhere in the batch, to `tokens`."""
    prompts = []
    for first, entry in asked:
        row, count = len(tokens), len(entry.prompt_targets)
        tokens.extend(range(first, first + count))
        prompts.append(PromptRows(entry.seq_id, range(row, row + count), entry.prompt_targets))
    return prompts
