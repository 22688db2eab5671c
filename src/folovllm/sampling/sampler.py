"""From the logits of a step to a token a sequence, in vLLM's order.

Raw logprobs, then in float32: allowed ids, bad words, min_tokens, logit bias, penalties; then
the most likely token, or: temperature, min-p, top-k, top-p and a draw
(`vllm/v1/sample/sampler.py`). What no sequence of the batch asks for is skipped.
"""

import math
import random
from collections.abc import Collection, Sequence as Rows
from dataclasses import dataclass
from itertools import islice

import torch

from folovllm.outputs import Logprob
from folovllm.request import Sequence
from folovllm.sampling import logprobs, ops
from folovllm.sampling.edits import EditBatch
from folovllm.sampling.state import EncodeWord, SequenceState, Stage, make_state
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

    It keeps a state for each sequence from when it first sees it until `forget`: above all its
    random numbers, of which each drawn token takes one. So the tokens of a sequence do not
    depend on its neighbours, nor on whether it was preempted.
    """

    def __init__(
        self,
        vocab_size: int,
        device: torch.device,
        *,
        eos_token_ids: Collection[int],
        seed: int,
        encode_word: EncodeWord | None,
    ) -> None:
        """Make a sampler that has seen no sequence.

        Args:
            vocab_size: tokens that can be chosen, ids below it.
            device: where the logits are.
            eos_token_ids: end-of-sequence ids, which `min_tokens` holds back.
            seed: of the sequences without a seed of their own.
            encode_word: from a bad word to the token-id sequences that spell it; None without a
                tokenizer, where bad words were refused before.
        """
        self._vocab_size = vocab_size
        self._device = device
        self._eos_token_ids = frozenset(eos_token_ids)
        self._encode_word = encode_word
        self._seeds = random.Random(seed)  # noqa: S311 - nothing secret
        self._states: dict[str, SequenceState] = {}
        self._seq_ids: dict[str, list[str]] = {}  # of the states, by request
        self._scratch = torch.empty(0, device=device)

    def sample(self, logits: torch.Tensor, seqs: Rows[Sequence]) -> SampledTokens:
        """Choose a token for each sequence.

        Args:
            logits: [rows, >= vocab_size] of any floating-point type, a row a sequence, in order.
                The caller's: they are only read, so rows may share their memory. Columns beyond
                the vocabulary are padding.
            seqs: the sequences; at least one. `data` is what was generated of each so far.
        """
        states = [self._states.get(seq.seq_id) or self._meet(seq) for seq in seqs]
        stages = 0
        for state in states:
            stages |= state.stages
        raw = logits[:, : self._vocab_size]
        edited = self._edit(raw, states, seqs) if stages & _EDITED else None
        peaks, tokens = self._choose(raw if edited is None else edited, states, stages)
        raw_peaks = peaks if edited is None else raw.amax(-1)
        groups = _by_count(states) if stages & _LOGPROBS else {}
        tables = [self._tabulate(raw, tokens, *group) for group in groups.items()]
        return _fetch(tokens, raw_peaks, peaks, groups, tables)

    def prompt_logprobs(
        self, logits: torch.Tensor, token_ids: Rows[int], count: int
    ) -> list[dict[int, Logprob]]:
        """Return the log probabilities of prompt tokens.

        Args:
            logits: [m, >= vocab_size] at m positions of a prompt; only read.
            token_ids: the m tokens that do come next.
            count: `SamplingParams.prompt_logprobs`: of how many of the most likely tokens at
                each position to report as well; -1 for the vocabulary.
        """
        count = self._vocab_size if count == -1 else min(count, self._vocab_size)
        raw, tokens = logits[:, : self._vocab_size], self._send(token_ids)
        # A long prompt's rows together would take memory that no other step takes.
        parts = zip(raw.split(_PROMPT_ROWS), tokens.split(_PROMPT_ROWS), strict=True)
        table = torch.cat([logprobs.tabulate(*part, count) for part in parts])
        return logprobs.to_dicts(token_ids, table.tolist(), count)

    def forget(self, request_id: str) -> None:
        """Drop what is known of a request's sequences: it is finished."""
        for seq_id in self._seq_ids.pop(request_id, ()):
            del self._states[seq_id]

    def _meet(self, seq: Sequence) -> SequenceState:
        self._seq_ids.setdefault(seq.request_id, []).append(seq.seq_id)
        state = self._states[seq.seq_id] = make_state(
            seq,
            vocab_size=self._vocab_size,
            eos_token_ids=self._eos_token_ids,
            encode_word=self._encode_word,
            seeds=self._seeds,
        )
        return state

    def _edit(
        self, raw: torch.Tensor, states: Rows[SequenceState], seqs: Rows[Sequence]
    ) -> torch.Tensor | None:
        """Return the logits as the sequences want them; None where they are so already."""
        batch = EditBatch()
        for row, state in enumerate(states):
            if state.edits is None or not state.stages & _EDITED:
                continue
            output = seqs[row].data.output_token_ids
            if state.edits.lasting or len(output) < state.edits.min_tokens:
                batch.add(row, state.edits, output)
            else:
                state.stages &= ~_EDITED
        if not batch:
            return None
        edited = raw.to(torch.float32, copy=True)
        batch.apply(edited)
        return edited

    def _choose(
        self, logits: torch.Tensor, states: Rows[SequenceState], stages: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the greatest logit and the token of each row."""
        if not stages & _RANDOM:
            return ops.largest(logits)
        rows = [row for row, state in enumerate(states) if state.stages & _RANDOM]
        if len(rows) == len(states):
            peaks = logits.amax(-1)
            return peaks, self._draw(logits, peaks, states)
        peaks, tokens = ops.largest(logits)
        places = self._send(rows)
        tokens[places] = self._draw(logits[places], peaks[places], [states[row] for row in rows])
        return peaks, tokens

    def _draw(
        self, logits: torch.Tensor, peaks: torch.Tensor, states: Rows[SequenceState]
    ) -> torch.Tensor:
        columns = [(s.uniform(), s.factor, s.log_min_p, s.top_k, s.top_p) for s in states]
        table = torch.tensor(columns, dtype=torch.float64).to(self._device, non_blocking=True)
        uniforms, factors, log_min_p, top_k, top_p = table.T.contiguous()
        scaled = ops.scale(logits, peaks, factors.float(), self._room(len(states)))
        limits = Limits(log_min_p.float(), top_k.long(), top_p, self._vocab_size)
        rows = [row for row, state in enumerate(states) if state.stages & _TRUNCATED]
        if len(rows) == len(states):
            return draw_truncated(scaled, limits, uniforms)
        if not rows:
            return ops.search(scaled.exp_(), uniforms)
        cut = self._send(rows)
        drawn = draw_truncated(scaled[cut], limits.of(cut), uniforms[cut])
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
        self, raw: torch.Tensor, tokens: torch.Tensor, count: int, rows: Rows[int]
    ) -> torch.Tensor:
        if len(rows) < len(raw):
            places = self._send(rows)
            raw, tokens = raw[places], tokens[places]
        return logprobs.tabulate(raw, tokens, count)

    def _send(self, rows: Rows[int]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.int64).to(self._device, non_blocking=True)


def _by_count(states: Rows[SequenceState]) -> dict[int, list[int]]:
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
    tables: Rows[torch.Tensor],
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


def _failures(raw_peaks: Rows[float], peaks: Rows[float]) -> dict[int, str]:
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
