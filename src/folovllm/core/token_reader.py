"""What the scheduler asks of whoever knows the text of tokens."""

from collections.abc import Sequence as Series
from typing import Protocol, TypeAlias

from folovllm.outputs import Logprob
from folovllm.request import Sequence

Logprobs: TypeAlias = dict[int, Logprob]
"""Log probabilities in one place of a sequence, by token id."""


class TokenReader(Protocol):
    """Reads what a step brought, as the scheduler takes it in: it knows the tokens' text.

    It raises nothing, for that would be an error of the scheduler's books. Where it cannot read
    for a request it sets the request's `error`, and the scheduler ends that request.
    """

    def read_token(
        self, seq: Sequence, token_id: int, logprobs: Logprobs | None, is_end: bool
    ) -> str | None:
        """Read a token that `seq` has got; return the stop string that it completes, if any.

        Args:
            seq: the sequence, with the token.
            token_id: the token.
            logprobs: what is known of it and of others in its place.
            is_end: whether the sequence ends by this token itself, end-of-sequence or a stop id.
        """
        ...

    def read_prompt(self, seq: Sequence, position: int, logprobs: Series[Logprobs]) -> None:
        """Read the log probabilities of the prompt's tokens from `position` on."""
        ...


class NoReader:
    """Reads nothing: for a scheduler without text."""

    def read_token(
        self, seq: Sequence, token_id: int, logprobs: Logprobs | None, is_end: bool
    ) -> str | None:
        """No text, no stop string."""

    def read_prompt(self, seq: Sequence, position: int, logprobs: Series[Logprobs]) -> None:
        """Nothing to keep."""
