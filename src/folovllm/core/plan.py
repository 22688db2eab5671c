"""What the scheduler decided for one step."""

from dataclasses import dataclass

from folovllm.request import Sequence


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """The part of a sequence that is computed in a step.

    Attributes:
        seq: the sequence; whoever executes the step reads it and does not change it.
        start: how many of its tokens were computed before.
        num_tokens: how many are computed now, those at positions `start` to
            `start + num_tokens - 1`.
        samples: the sequences that get a token from the logits of the last of them: none while
            tokens of `seq` are left to compute, else `seq` itself; at the end of a prompt, the
            other sequences of the request as well, which go on from `seq`'s cache.
        block_ids: the blocks of `seq`, which it may lose by an abort before they are read here;
            they are nobody else's until the next step is planned.
    """

    seq: Sequence
    start: int
    num_tokens: int
    samples: tuple[Sequence, ...]
    block_ids: list[int]


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step: what to compute, and what to move in the cache before that.

    The moves are of whole blocks, source before target, and are done in the order of the
    attributes here, before anything is computed.

    Attributes:
        scheduled: who runs, and how much.
        num_tokens: the tokens of all of them together.
        swap_out: from the device's blocks to the host's.
        copies: from block to block on the device.
        swap_in: from the host's blocks to the device's.
    """

    scheduled: tuple[ScheduledSequence, ...]
    num_tokens: int
    swap_out: tuple[tuple[int, int], ...] = ()
    copies: tuple[tuple[int, int], ...] = ()
    swap_in: tuple[tuple[int, int], ...] = ()
