"""Barring the tokens that would complete a bad word, in token ids alone."""

from collections import defaultdict

import numpy as np
import numpy.typing as npt

from folovllm.sampling_params import BadWords

Ids = npt.NDArray[np.int64]


class BadWordTracker:
    """How much of each bad word one sequence's output ends with."""

    __slots__ = ("_ends", "_silent", "_states", "_steps")

    def __init__(self, words: BadWords, vocab_size: int) -> None:
        """Begin with an output without a token; ids beyond the vocabulary are never chosen."""
        self._steps: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for state, token, following in words.steps:
            self._steps[state, token].append(following)
        ends: defaultdict[int, list[int]] = defaultdict(list)
        for state, token in words.ends:
            if token < vocab_size:
                ends[state].append(token)
        self._ends = {state: np.array(tokens, np.int64) for state, tokens in ends.items()}
        self._silent = frozenset(words.silent)
        self._states = {0}

    def __bool__(self) -> bool:
        """Whether any token may ever be barred."""
        return bool(self._ends)

    def append(self, token: int) -> None:
        """Take over a token that was generated."""
        if token not in self._silent:
            steps = self._steps
            keys = [(state, token) for state in self._states]
            self._states = {0}.union(*(steps[key] for key in keys if key in steps))

    def barred(self) -> list[Ids]:
        """Return the tokens that must not come next, in several arrays."""
        ends = self._ends
        return [ends[state] for state in self._states if state in ends]
