"""A step while it is planned."""

import time

from folovllm.core.plan import Moves, NewSequence, ScheduledSequence, StepPlan
from folovllm.request import Sequence


class StepBuilder:
    """What is left to give away in a step, and to whom the rest went.

    Args:
        num_tokens: the most tokens of the step.
        max_num_seqs: the most sequences that run.

    Attributes:
        num_tokens_left: of those.
        num_forks: sequences that begin to run at the end of the step.
        num_samples: sequences that get tokens.
        started: when planning began, by `time.perf_counter`.
        members: for each entry of the plan its sequence, and those that get tokens from it.
    """

    def __init__(self, num_tokens: int, max_num_seqs: int) -> None:
        """Begin with nothing given away."""
        self.num_tokens_left = num_tokens
        self.num_forks = 0
        self.num_samples = 0
        self._max_num_seqs = max_num_seqs
        self.started = time.perf_counter()
        self.members: list[tuple[Sequence, tuple[Sequence, ...]]] = []
        self._entries: list[ScheduledSequence] = []
        self._new: list[NewSequence] = []
        self._num_prompt_tokens = 0

    def add(self, seq: Sequence, num_tokens: int, num_running: int) -> None:
        """Enter a sequence that has the blocks for what is computed of it.

        Args:
            seq: the sequence.
            num_tokens: how many of its next tokens are computed, drafts included.
            num_running: how many sequences run by now.
        """
        data, start = seq.data, seq.num_computed_tokens
        samples: tuple[Sequence, ...] = (seq,)
        outputs = data.output_token_ids
        is_last = start + 1 == len(data.prompt_token_ids) + len(outputs)
        if is_last and num_tokens == 1 and outputs and seq.is_planned:
            # Decoding, as nearly all entries are: the newest token, and nothing else to tell.
            entry = ScheduledSequence(
                seq.seq_id, start, (outputs[-1],), *_table_changes(seq), (seq.seq_id,)
            )
        else:
            samples = self._find_samples(seq, start + num_tokens, num_running)
            entry = self._make_entry(seq, start, start + num_tokens, samples)
        self._entries.append(entry)
        self.members.append((seq, samples))
        self.num_samples += len(samples)
        self.num_tokens_left -= num_tokens

    def _find_samples(self, seq: Sequence, end: int, num_running: int) -> tuple[Sequence, ...]:
        """Return who gets tokens once the tokens of `seq` are computed up to `end`."""
        if end < seq.get_len():
            return ()
        num_places = self._max_num_seqs - num_running - self.num_forks
        siblings = seq.siblings[:num_places]
        self.num_forks += len(siblings)
        return (seq, *siblings)

    def _make_entry(
        self, seq: Sequence, start: int, end: int, samples: tuple[Sequence, ...]
    ) -> ScheduledSequence:
        """Tell of a part of a sequence, and of those that the worker does not know."""
        length, prompt = seq.get_len(), seq.data.prompt_token_ids
        token_ids = seq.data.get_slice(start, end)
        if end > length:
            token_ids += seq.draft_token_ids[: end - length]
        for member in samples or (seq,):
            if not member.is_planned:
                self._meet(member)
        self._num_prompt_tokens += max(min(end, len(prompt)) - start, 0)
        targets: tuple[int, ...] = ()
        if seq.request.sampling.prompt_logprobs is not None:
            # The prompt's last position predicts the first output.
            targets = tuple(prompt[start + 1 : end + 1])
        return ScheduledSequence(
            seq.seq_id,
            start,
            tuple(token_ids),
            *_table_changes(seq),
            tuple([sample.seq_id for sample in samples]),
            max(end - length, 0),
            targets,
        )

    def make_plan(
        self, finished: list[str], unclean: set[int], moves: tuple[Moves, Moves, Moves]
    ) -> StepPlan:
        """Close the step: nothing of its plan changes from here on.

        Args:
            finished: what the worker is to forget; emptied.
            unclean: blocks that nobody has and that are to be cleared; emptied where the worker
                has something to compute.
            moves: swaps out, copies, swaps in.
        """
        clear: tuple[int, ...] = ()
        if self._entries and unclean:
            clear = tuple(sorted(unclean))
            unclean.clear()
        ids = tuple(finished)
        finished.clear()
        return StepPlan(
            tuple(self._entries), tuple(self._new), ids, clear, *moves, self._num_prompt_tokens
        )

    def _meet(self, seq: Sequence) -> None:
        """Tell the worker of a sequence that it does not know."""
        sampling = seq.request.sampling
        looks_back = sampling.repetition_penalty != 1
        prompt = tuple(seq.data.prompt_token_ids) if looks_back else ()
        self._new.append(NewSequence(seq.seq_id, seq.index, sampling, prompt))
        seq.is_planned = True


def _table_changes(seq: Sequence) -> tuple[int, tuple[int, ...]]:
    """From which place on the worker's block table is another, and what it is from there."""
    known, block_ids = seq.num_planned_blocks, seq.block_ids
    if known == len(block_ids):
        return known, ()
    seq.num_planned_blocks = len(block_ids)
    return known, tuple(block_ids[known:])
