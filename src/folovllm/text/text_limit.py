"""Refusing a text that is too long before it is tokenised, which takes seconds for megabytes."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

from folovllm.text.token_text import byte_characters, is_byte_level

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_SHRINKING = 4
"""A normalizer may make one character of several; of no letters it makes less than this."""


class TextLimit:
    """A number of bytes beyond which a text has too many tokens for certain.

    vLLM's rule (`max_chars_per_token`) is applied where it holds: where every byte of a text is
    in some token and no token has more bytes than the longest of the vocabulary. That is so with
    byte-level vocabularies and with byte fallback. Others may make one unknown token of a
    megabyte, and have no limit. Spaces are not counted, as added tokens may swallow those around
    them, nor are bytes that the vocabulary lacks.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_tokens: int) -> None:
        """Take the tokenizer, and the most tokens that a text may have."""
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def explain(self, text: str) -> str:
        """Say why a text is too long; empty where it may not be."""
        # The usual case: no token has less than a byte, no character more than four.
        if len(text) * 4 <= self._max_tokens or self._longest == 0:
            return ""
        limit = self._max_tokens * self._longest
        if len(text) * 4 <= limit:
            return ""
        size = len(text.encode(errors="surrogatepass").translate(None, self._uncounted))
        if size <= limit:
            return ""
        return (
            f"it has {size} bytes, and {self._max_tokens} tokens (the model's max_model_len) "
            f"have {limit} at most"
        )

    @cached_property
    def _longest(self) -> int:
        """The most bytes of text in one token; 0 where nothing is certain."""
        backend: Any = getattr(self._tokenizer, "backend_tokenizer", None)
        in_bytes = is_byte_level(self._tokenizer)
        if not in_bytes and not getattr(getattr(backend, "model", None), "byte_fallback", False):
            return 0
        # In a byte-level vocabulary a character stands for each byte; not so in added tokens.
        added = self._tokenizer.added_tokens_encoder
        sizes = [len(name.encode()) for name in added]
        sizes += (len(name) if in_bytes else len(name.encode()) for name in self._names)
        return max(sizes, default=0) * (1 if backend.normalizer is None else _MOST_SHRINKING)

    @cached_property
    def _uncounted(self) -> bytes:
        missing = []
        if is_byte_level(self._tokenizer):
            characters = byte_characters().items()
            missing = [byte for byte, char in characters if char not in self._names]
        return b" \t\n\r\x0b\x0c" + bytes(missing)

    @cached_property
    def _names(self) -> dict[str, int]:
        return dict(self._tokenizer.get_vocab())
