"""What a request changes of its logits before a token is chosen.

In vLLM's order (`vllm/v1/sample/sampler.py`): allowed token ids, bad words and min_tokens, logit
bias, penalties. Only the tokens that are concerned are touched. Which these are is kept in NumPy
arrays on the host, one set a sequence; those of a step are joined and copied to the device.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from folovllm.sampling import ops
from folovllm.sampling.bad_words import BadWordTracker
from folovllm.sampling_params import SamplingSpec

Ids = npt.NDArray[np.int64]


class SeenTokens:
    """The tokens that a penalty looks back at, each once, and how often the output has it.

    Attributes:
        penalties: repetition, frequency and presence.
    """

    def __init__(
        self, prompt: Sequence[int], penalties: tuple[float, float, float], vocab_size: int
    ) -> None:
        """Begin with the prompt's tokens, which the repetition penalty is for as well."""
        self.penalties = penalties
        repeated = {token for token in prompt if token < vocab_size} if penalties[0] != 1 else ()
        self._places = {token: place for place, token in enumerate(repeated)}
        self._ids: Ids = np.fromiter(repeated, np.int64, len(repeated))
        self._counts = np.zeros(len(repeated), np.int64)

    def add(self, token: int) -> None:
        """Count a token that came to the output."""
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._grow()
        self._ids[place] = token
        self._counts[place] += 1

    def _grow(self) -> None:
        more = len(self._ids) + 16
        self._ids = np.concatenate((self._ids, np.zeros(more, np.int64)))
        self._counts = np.concatenate((self._counts, np.zeros(more, np.int64)))

    @property
    def ids(self) -> Ids:
        """The tokens, [n]."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> Ids:
        """How often each is in the output, [n]."""
        return self._counts[: len(self._places)]


class Edits:
    """What one sequence asks to be changed, and the output that this depends on.

    Attributes:
        allowed: the only tokens it may have; None for all.
        bias_ids: the tokens with a bias.
        biases: theirs.
        seen: what penalties look back at; None without one.
        min_tokens: before this many there are no `ends`.
        lasting: whether anything is left to do once there are `min_tokens`.
        output: what was generated so far.
    """

    __slots__ = (
        "_ends",
        "_words",
        "allowed",
        "bias_ids",
        "biases",
        "lasting",
        "min_tokens",
        "output",
        "seen",
    )

    def __init__(self, spec: SamplingSpec, prompt: Sequence[int], vocab_size: int) -> None:
        """Find out what there is to do; ids beyond the vocabulary are never chosen anyway.

        Args:
            spec: of the request.
            prompt: the prompt's ids; they matter to a repetition penalty alone.
            vocab_size: the vocabulary's size.
        """

        def known(ids: Iterable[int]) -> list[int]:
            return sorted({i for i in ids if i < vocab_size})

        self._words = BadWordTracker(spec.bad_words, vocab_size)
        self.min_tokens = spec.min_tokens
        self._ends = _array(known(spec.end_token_ids))
        allowed = spec.allowed_token_ids
        self.allowed = None if allowed is None else _array(known(allowed))
        bias = dict(spec.logit_bias)
        self.bias_ids = _array(known(bias))
        self.biases = np.array([bias[i] for i in self.bias_ids.tolist()], np.float32)
        penalties = (spec.repetition_penalty, spec.frequency_penalty, spec.presence_penalty)
        off = penalties[0] == 1 and not any(penalties[1:])
        self.seen = None if off else SeenTokens(prompt, penalties, vocab_size)
        self.lasting = (
            bool(self._words or bias) or self.seen is not None or self.allowed is not None
        )
        self.output: list[int] = []

    @property
    def active(self) -> bool:
        """Whether there is, or may come to be, something to change."""
        return self.lasting or len(self.output) < self.min_tokens

    def append(self, token: int) -> None:
        """Take over a token that was generated."""
        self.output.append(token)
        if self._words:
            self._words.append(token)
        if self.seen is not None:
            self.seen.add(token)

    def barred(self) -> list[Ids]:
        """Return the tokens that must not come next, in several arrays."""
        barred = self._words.barred()
        if len(self.output) < self.min_tokens and len(self._ends):
            barred.append(self._ends)
        return barred


class EditBatch:
    """The edits of a step, gathered before they are applied: often there is nothing to do."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._allowed: list[tuple[int, Ids]] = []
        self._barred: list[tuple[int, Ids]] = []
        self._biased: list[tuple[int, Edits]] = []
        self._penalized: list[tuple[int, SeenTokens]] = []

    def __bool__(self) -> bool:
        """Whether anything changes."""
        return bool(self._allowed or self._barred or self._biased or self._penalized)

    def add(self, row: int, edits: Edits) -> None:
        """Add what the sequence in `row` needs next."""
        if edits.allowed is not None:
            self._allowed.append((row, edits.allowed))
        self._barred += [(row, barred) for barred in edits.barred()]
        if len(edits.bias_ids):
            self._biased.append((row, edits))
        if edits.seen is not None and len(edits.seen.ids):
            self._penalized.append((row, edits.seen))

    def apply(self, logits: torch.Tensor) -> None:
        """Change the logits, [rows, vocab] in float32, in place."""
        device = logits.device
        if self._allowed:
            rows = _send(_array([row for row, _ in self._allowed]), device)
            ops.allow_only(logits, rows, *_pairs(self._allowed, device))
        if self._barred:
            ops.bar(logits, *_pairs(self._barred, device))
        if self._biased:
            places = _pairs([(row, edits.bias_ids) for row, edits in self._biased], device)
            logits[places] += _send(np.concatenate([e.biases for _, e in self._biased]), device)
        if self._penalized:
            self._penalize(logits)

    def _penalize(self, logits: torch.Tensor) -> None:
        seen = [seen for _, seen in self._penalized]
        places = _pairs([(row, seen.ids) for row, seen in self._penalized], logits.device)
        counts = np.concatenate([one.counts for one in seen])
        lengths = [len(one.ids) for one in seen]
        penalties = np.repeat(np.array([one.penalties for one in seen]).T, lengths, axis=1)
        counts_, penalties_ = (_send(array, logits.device) for array in (counts, penalties))
        ops.penalize(logits, *places, counts_, penalties_)


def _array(ids: Sequence[int]) -> Ids:
    return np.array(ids, np.int64)


def _pairs(
    parts: Sequence[tuple[int, Ids]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows and the ids of (row, ids) parts, joined."""
    rows = np.repeat(_array([row for row, _ in parts]), [len(ids) for _, ids in parts])
    both = _send(np.stack((rows, np.concatenate([ids for _, ids in parts]))), device)
    return both[0], both[1]


def _send(array: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)
