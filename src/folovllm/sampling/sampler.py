"""From the logits of a step to a token a sequence, in vLLM's order.

Raw logprobs, then in float32: allowed ids, bad words, min_tokens, logit bias, penalties; then
the most likely token, or: temperature, min-p, top-k, top-p and a draw
(`vllm/v1/sample/sampler.py`). What no sequence of the batch asks for is skipped.
"""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from folovllm.core.plan import NewSequence
from folovllm.outputs import Logprob
from folovllm.sampling import logprobs, ops
from folovllm.sampling.device import device_ops
from folovllm.sampling.edits import EditBatch
from folovllm.sampling.state import SamplingState, Stage, make_state
from folovllm.sampling.truncation import Limits, draw_truncated

# As plain ints: operations on an IntFlag take a microsecond each.
_RANDOM, _TRUNCATED = int(Stage.RANDOM), int(Stage.TRUNCATED)
_EDITED, _LOGPROBS = int(Stage.EDITED), int(Stage.LOGPROBS)

_PROMPT_ROWS = 256


@dataclass(slots=True)
class SampledTokens:
    """What came of a step.

    Attributes:
        token_ids: one a row.
        logprobs: one a row, None for a row that did not ask; None when no row did.
        failed: why there is no token, by row; what else there is of the row means nothing.
    """

    token_ids: list[int]
    logprobs: list[dict[int, Logprob] | None] | None
    failed: dict[int, str]


class Sampler:
    """Chooses the next token of each sequence.

    It keeps a state for each sequence from `meet` to `forget`: above all its random numbers, of
    which each drawn token takes one. So the tokens of a sequence do not depend on its
    neighbours, nor on whether it was preempted.
    """

    def __init__(self, vocab_size: int, device: torch.device, *, seed: int) -> None:
        """Make a sampler that knows no sequence.

        Args:
            vocab_size: tokens that can be chosen, ids below it.
            device: where the logits are.
            seed: of the sequences without a seed of their own.
        """
        self._vocab_size = vocab_size
        self._device = device
        self._ops = device_ops(device)
        self._seeds = random.Random(seed)  # noqa: S311 - nothing secret
        self._states: dict[str, SamplingState] = {}
        self._scratch = torch.empty(0, device=device)

    def meet(self, sequences: Iterable[NewSequence]) -> None:
        """Get to know sequences, which have no output yet."""
        for new in sequences:
            self._states[new.seq_id] = make_state(
                new, vocab_size=self._vocab_size, seeds=self._seeds
            )

    def forget(self, seq_ids: Iterable[str]) -> None:
        """Drop what is kept of finished sequences; unknown ids are fine."""
        for seq_id in seq_ids:
            self._states.pop(seq_id, None)

    def sample(self, logits: torch.Tensor, seq_ids: Sequence[str]) -> SampledTokens:
        """Choose a token for each sequence.

        Args:
            logits: [rows, >= vocab_size] of any floating-point type, a row a sequence, in order.
                The caller's: they are only read, so rows may share their memory. Columns beyond
                the vocabulary are padding.
            seq_ids: the sequences; at least one.
        """
        states = [self._states[seq_id] for seq_id in seq_ids]
        stages = 0
        for state in states:
            stages |= state.stages
        raw = logits[:, : self._vocab_size]
        edited = self._edit(raw, states) if stages & _EDITED else None
        peaks, tokens = self._choose(raw if edited is None else edited, states, stages)
        raw_peaks = peaks if edited is None else raw.amax(-1)
        groups = _by_count(states) if stages & _LOGPROBS else {}
        tables = [self._tabulate(raw, tokens, *group) for group in groups.items()]
        sampled = _fetch(tokens, raw_peaks, peaks, groups, tables)
        if stages & _EDITED:
            _append(states, sampled.token_ids)
        return sampled

    def prompt_logprobs(
        self, logits: torch.Tensor, seq_id: str, token_ids: Sequence[int]
    ) -> list[dict[int, Logprob]]:
        """Return the log probabilities of prompt tokens, as many as the sequence asked for.

        Args:
            logits: [m, >= vocab_size] at m positions of a prompt; only read.
            seq_id: the sequence.
            token_ids: the m tokens that do come next.
        """
        count = max(0, self._states[seq_id].num_prompt_logprobs)
        raw, tokens = logits[:, : self._vocab_size], self._send(token_ids)
        # A long prompt's rows together would take memory that no other step takes.
        parts = zip(raw.split(_PROMPT_ROWS), tokens.split(_PROMPT_ROWS), strict=True)
        table = torch.cat([logprobs.tabulate(*part, count, self._ops) for part in parts])
        return logprobs.to_dicts(token_ids, table.tolist(), count)

    def _edit(self, raw: torch.Tensor, states: Sequence[SamplingState]) -> torch.Tensor | None:
        """Return the logits as the sequences want them; None where they are so already."""
        batch = EditBatch()
        for row, state in enumerate(states):
            if state.edits is not None and state.stages & _EDITED:
                batch.add(row, state.edits)
        if not batch:
            return None
        edited = raw.to(torch.float32, copy=True)
        batch.apply(edited)
        return edited

    def _choose(
        self, logits: torch.Tensor, states: Sequence[SamplingState], stages: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the greatest logit and the token of each row."""
        if not stages & _RANDOM:
            return self._ops.largest(logits)
        rows = [row for row, state in enumerate(states) if state.stages & _RANDOM]
        if len(rows) == len(states):
            peaks = logits.amax(-1)
            return peaks, self._draw(logits, peaks, states)
        peaks, tokens = self._ops.largest(logits)
        places = self._send(rows)
        tokens[places] = self._draw(logits[places], peaks[places], [states[row] for row in rows])
        return peaks, tokens

    def _draw(
        self, logits: torch.Tensor, peaks: torch.Tensor, states: Sequence[SamplingState]
    ) -> torch.Tensor:
        columns = [(s.uniform(), s.factor, s.log_min_p, s.top_k, s.top_p) for s in states]
        table = torch.tensor(columns, dtype=torch.float64).to(self._device, non_blocking=True)
        uniforms, factors, log_min_p, top_k, top_p = table.T.contiguous()
        scaled = ops.scale(logits, peaks, factors.float(), self._room(len(states)))
        limits = Limits(log_min_p.float(), top_k.long(), top_p, self._vocab_size)
        rows = [row for row, state in enumerate(states) if state.stages & _TRUNCATED]
        if len(rows) == len(states):
            return draw_truncated(scaled, limits, uniforms, self._ops)
        if not rows:
            return ops.search(scaled.exp_(), uniforms)
        cut = self._send(rows)
        drawn = draw_truncated(scaled[cut], limits.of(cut), uniforms[cut], self._ops)
        tokens = ops.search(scaled.exp_(), uniforms)
        tokens[cut] = drawn
        return tokens

    def _room(self, rows: int) -> torch.Tensor:
        """Return [rows, padded(vocab)] of float32 to work in, valid until the next call.

        Kept, because a CPU spends more time on fresh pages of this size than on the work.
        """
        columns = ops.padded(self._vocab_size)
        if self._scratch.numel() < rows * columns:
            self._scratch = torch.empty(rows * columns, device=self._device)
        return self._scratch[: rows * columns].view(rows, columns)

    def _tabulate(
        self, raw: torch.Tensor, tokens: torch.Tensor, count: int, rows: Sequence[int]
    ) -> torch.Tensor:
        if len(rows) < len(raw):
            places = self._send(rows)
            raw, tokens = raw[places], tokens[places]
        return logprobs.tabulate(raw, tokens, count, self._ops)

    def _send(self, rows: Sequence[int]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.int64).to(self._device, non_blocking=True)


def _append(states: Iterable[SamplingState], token_ids: Iterable[int]) -> None:
    """Tell the edits what was generated, as long as they have anything to do.

    Where the rest of a step fails, its sequences end with it: nothing is to be taken back.
    """
    for state, token in zip(states, token_ids, strict=True):
        if state.edits is not None and state.stages & _EDITED:
            state.edits.append(token)
            if not state.edits.active:
                state.stages &= ~_EDITED


def _by_count(states: Sequence[SamplingState]) -> dict[int, list[int]]:
    """Return the rows that want logprobs, by how many: each number is one call."""
    groups: dict[int, list[int]] = {}
    for row, state in enumerate(states):
        if state.num_logprobs >= 0:
            groups.setdefault(state.num_logprobs, []).append(row)
    return groups


def _fetch(
    tokens: torch.Tensor,
    raw_peaks: torch.Tensor,
    peaks: torch.Tensor,
    groups: dict[int, list[int]],
    tables: Sequence[torch.Tensor],
) -> SampledTokens:
    """Bring everything to the host in one transfer: float64 holds ids exactly."""
    rows = len(tokens)
    parts = [part.reshape(-1).double() for part in (tokens, raw_peaks, peaks, *tables)]
    values = iter(torch.cat(parts).tolist())
    ids, raw_tops, tops = (list(islice(values, rows)) for _ in range(3))
    token_ids = list(map(int, ids))
    failed = _failures(raw_tops, tops)
    if not groups:
        return SampledTokens(token_ids, None, failed)
    reported: list[dict[int, Logprob] | None] = [None] * rows
    for count, places in groups.items():
        table = [list(islice(values, 2 + 2 * count)) for _ in places]
        dicts = logprobs.to_dicts([token_ids[place] for place in places], table, count)
        for place, entries in zip(places, dicts, strict=True):
            reported[place] = entries
    return SampledTokens(token_ids, reported, failed)


def _failures(raw_peaks: Sequence[float], peaks: Sequence[float]) -> dict[int, str]:
    failed = {}
    for row, (raw, peak) in enumerate(zip(raw_peaks, peaks, strict=True)):
        if math.isfinite(raw) and math.isfinite(peak):
            continue
        if math.isnan(raw):
            failed[row] = "the model's logits hold NaN"
        elif math.isinf(raw):
            what = "hold infinity" if raw > 0 else "are all -infinity"
            failed[row] = f"the model's logits {what}"
        else:
            failed[row] = (
                "no token is left to choose from: allowed_token_ids, bad_words and min_tokens "
                "bar them all"
            )
    return failed
