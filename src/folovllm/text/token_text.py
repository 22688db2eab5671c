"""A tokenizer as the engine reads it: from token ids to text."""

import json
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerBase


class TokenText:
    """What the text side asks a tokenizer; one for all sequences.

    A fast tokenizer is asked below transformers' wrapper, which costs four times as much as the
    decoding itself. Its texts are those of `tokenizer.decode` without the clean-up of spaces.

    Attributes:
        decode: from a list of token ids to their text, special tokens included.
        knows: of a token id, something true if the tokenizer has it: a model has often more rows
            than its tokenizer has tokens.
        special_ids: the tokens that `skip_special_tokens` leaves out.
        byte_ids: of a vocabulary with byte fallback, the tokens that stand for one byte each.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Find out what kind of tokenizer it is."""
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self.decode: Callable[[list[int]], str]
        self.knows: Callable[[int], object]
        if backend is None:
            self._tokenizer = tokenizer
            self.knows = range(len(tokenizer)).__contains__
            self.decode = self._decode_slow
            self.special_ids = frozenset(tokenizer.all_special_ids)
        else:
            self.decode = partial(backend.decode, skip_special_tokens=False)
            self.knows = backend.id_to_token
            added = backend.get_added_tokens_decoder()
            self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._texts: dict[int, str] = {}
        self.byte_ids = self._find_bytes(tokenizer)

    def of(self, token_id: int) -> str:
        """Return the text of a token alone, remembered: `Logprob.decoded_token`."""
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self.decode([token_id])
        return text

    def _decode_slow(self, token_ids: list[int]) -> str:
        # A fast tokenizer leaves out what it does not know; a slow one raises what it likes.
        known = list(filter(self.knows, token_ids))
        return str(self._tokenizer.decode(known, clean_up_tokenization_spaces=False))

    def _find_bytes(self, tokenizer: "PreTrainedTokenizerBase") -> dict[int, bytes]:
        """The byte tokens, if `<0x..>` is how this vocabulary spells what it has no token for."""
        names = [f"<0x{byte:02X}>" for byte in range(256)]
        ids: Any = tokenizer.convert_tokens_to_ids(names)
        # Asked of the decoder, as another vocabulary may have such tokens as mere text.
        if len(set(ids) - {None}) < 256 or self.decode([ids[b] for b in "é".encode()]) != "é":
            return {}
        return {token_id: bytes([byte]) for byte, token_id in enumerate(ids)}


def is_byte_level(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a vocabulary is spelt in bytes, a character for each."""
    decoder: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return decoder is not None and json.loads(decoder.__getstate__()).get("type") == "ByteLevel"


def byte_characters() -> dict[int, str]:
    """Return the character that GPT-2's vocabulary has for each byte: itself if it can be seen."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {
        byte: chr(256 + place) for place, byte in enumerate(others)
    }
