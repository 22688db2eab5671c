"""What goes to the worker and what comes back: one step's plan, and its result.

A plan is told in ids and numbers alone, the idea of vLLM's `SchedulerOutput`
(`vllm/v1/core/sched/output.py`): it is immutable, shares nothing that changes, and can be written
as JSON or msgpack, so that the worker may as well be another process. What a worker needs to know
of a sequence from step to step it keeps itself: the plan says what is new and who is finished.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from folovllm.outputs import Logprob
from folovllm.sampling_params import SamplingSpec

Moves = tuple[tuple[int, int], ...]
"""Pairs of blocks, source and target."""


class NewSequence(NamedTuple):
    """A sequence that the worker has not heard of before.

    Attributes:
        seq_id: what the plans call it until it is finished.
        place: its index among the sequences of its request, by which their random numbers
            differ.
        sampling: how its tokens are chosen.
        prompt_token_ids: the prompt, where choosing tokens looks back at it (a repetition
            penalty); empty otherwise.
    """

    seq_id: str
    place: int
    sampling: SamplingSpec
    prompt_token_ids: tuple[int, ...] = ()


class ScheduledSequence(NamedTuple):
    """The part of a sequence that is computed in a step.

    Attributes:
        seq_id: the sequence.
        start: how many of its tokens were computed before.
        token_ids: the tokens that are computed now, at positions from `start` on; the last
            `num_drafts` of them are guesses.
        first_block: from which place on its block table changes.
        block_ids: the table from there on. The places before stay as the last plan left them,
            and places behind are gone.
        samples: the sequences that get tokens from the logits of the last of `token_ids`: none
            while tokens of the sequence are left to compute, else the sequence itself; at the
            end of a prompt the other sequences of the request as well.
        num_drafts: how many tokens are guesses of what the sequence will sample. The logits
            before each of them are sampled from too, and a guess counts as long as it is what
            is sampled: a sequence gets one to `num_drafts + 1` tokens.
        prompt_targets: where log probabilities of the prompt are wanted, the prompt's tokens
            that follow the first of `token_ids`, one each; empty otherwise.
    """

    seq_id: str
    start: int
    token_ids: tuple[int, ...]
    first_block: int
    block_ids: tuple[int, ...]
    samples: tuple[str, ...] = ()
    num_drafts: int = 0
    prompt_targets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: whom to forget and to meet, what to move in the cache, what to compute.

    The worker does it in the order of the attributes. Blocks are moved whole, source before
    target; every list of moves is done before the next one begins.

    Attributes:
        finished: sequences that no plan names any more; an id may be new again at once.
        new: sequences that are named for the first time, or again after they were finished.
        clear: blocks of the device to fill with zeros, since what is in them is not finite.
        swap_out: from the device's blocks to the host's.
        copies: from block to block on the device.
        swap_in: from the host's blocks to the device's.
        scheduled: who runs, and how much.
        num_prompt_tokens: how many of the tokens are of prompts, for the statistics.
    """

    scheduled: tuple[ScheduledSequence, ...] = ()
    new: tuple[NewSequence, ...] = ()
    finished: tuple[str, ...] = ()
    clear: tuple[int, ...] = ()
    swap_out: Moves = ()
    copies: Moves = ()
    swap_in: Moves = ()
    num_prompt_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """The tokens of all sequences together."""
        return sum(len(entry.token_ids) for entry in self.scheduled)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do for a worker.

        Moves come with somebody who is scheduled, and blocks are cleared when they are needed.
        """
        return not (self.scheduled or self.finished)


@dataclass(slots=True)
class StepResult:
    """What came out of a step.

    Attributes:
        token_ids: the tokens of each sampled sequence, in the order of the entries and of their
            `samples`: one, or several where drafts were right.
        logprobs: the log probabilities of the same tokens, one dictionary a token; None for a
            sequence that did not ask, and altogether when none did.
        prompt_logprobs: those of the entries' `prompt_targets`, by sequence id.
        failed: sequences whose logits could not be sampled from, and why, by sequence id; their
            tokens mean nothing.
    """

    token_ids: list[list[int]]
    logprobs: list[list[dict[int, Logprob]] | None] | None = None
    prompt_logprobs: dict[str, list[dict[int, Logprob]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
