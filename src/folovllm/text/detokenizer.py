"""From the tokens of a sequence to its text, one token at a time.

The text of a token depends on its neighbours: a sentencepiece vocabulary leaves out the space
before the first word, and a character may be spread over several tokens. So a token is decoded
together with the ones before it, and what that text is longer by is the token's own piece: the
window of vLLM (`vllm/transformers_utils/detokenizer_utils.py`) and of tokenizers'
`DecodeStream`. Unlike those, a piece may end within a token, ahead of an unfinished character,
and bytes that never make a character hold nothing up and are no error.
"""

from codecs import getincrementaldecoder
from typing import TYPE_CHECKING

from folovllm.text.stop_strings import StopStrings

if TYPE_CHECKING:
    from codecs import IncrementalDecoder
    from collections.abc import Sequence

    from folovllm.sampling_params import SamplingParams
    from folovllm.text.token_text import TokenText

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What decoders write for bytes that are not a character, or not yet."""

_PROMPT_TOKENS = 8
_MAX_WINDOW = 32
_MIN_WINDOW = 4  # as many tokens as a character has bytes, at most

_Utf8Decoder = getincrementaldecoder("utf-8")


def _decode_byte(decoder: "IncrementalDecoder", byte: bytes) -> str:
    text = decoder.decode(byte)
    kept = decoder.getstate()[0]
    # Python keeps half of a surrogate for `surrogatepass`, though it becomes no character.
    if kept[:1] == b"\xed" and kept[1:] >= b"\xa0":
        text += decoder.decode(b"", final=True)
    return text


class TokenStream:
    """Decodes a sequence of tokens piece by piece.

    The pieces together are `decode` of all tokens, but for the context that comes before them
    and for an unfinished character at the end, which is never given out.
    """

    __slots__ = ("_bytes", "_done", "_held", "_ids", "_last_special", "_skip", "_spaces", "_text")

    def __init__(
        self, text: "TokenText", *, skip_special_tokens: bool = True, spaces: bool = True
    ) -> None:
        """Begin with no context.

        Args:
            text: the tokenizer.
            skip_special_tokens: leave special tokens out.
            spaces: leave the spaces that the tokenizer puts between special tokens.
        """
        self._text = text
        self._skip = text.special_ids if skip_special_tokens else frozenset[int]()
        self._spaces = spaces or skip_special_tokens
        self._last_special = False
        self._ids: list[int] = []  # the window
        self._done = 0  # characters of its text that were given out
        self._held = ""  # the unfinished character behind them
        self._bytes = _Utf8Decoder("replace") if text.byte_ids else None

    def push(self, token_id: int) -> str:
        """Take the next token; return the text that is certain now and was not before."""
        if token_id in self._skip:
            return ""
        head = ""
        if self._bytes is not None:
            byte = self._text.byte_ids.get(token_id)
            if byte is not None:
                head = self._held
                self._begin(token_id)
                return head + _decode_byte(self._bytes, byte)
            if self._bytes.getstate()[0]:
                head = self._bytes.decode(b"", final=True)
        if not self._spaces:
            special = token_id in self._text.special_ids
            if special and self._last_special:
                head += self._held
                self._begin(token_id)
                return head + self._text.of(token_id)
            self._last_special = special
        return head + self._push(token_id) if head else self._push(token_id)

    def _push(self, token_id: int) -> str:
        ids = self._ids
        ids.append(token_id)
        text = self._text.decode(ids)
        # Bytes that are invalid are one mark each, and so is an unfinished character, however
        # many of its bytes are there: only the last mark can still become something else.
        end = len(text)
        if end and text[-1] == UNFINISHED:
            end -= 1
        piece = text[self._done : end]
        if end == len(text) and piece:
            self._begin(token_id)
            return piece
        if not piece and not self._text.knows(token_id):
            ids.pop()
            return ""
        # Nothing new is a reason to wait as well: some tokenizers strip a space at the end.
        self._done = max(end, self._done)
        self._held = text[end:]
        if len(ids) > _MAX_WINDOW:
            del ids[:-_MIN_WINDOW]
            self._done = len(self._text.decode(ids)) - len(self._held)
        return piece

    def _begin(self, token_id: int) -> None:
        """Begin a new window behind a token, which is what the next one's text depends on."""
        self._ids = [token_id]
        self._done = len(self._text.of(token_id))
        self._held = ""

    def unfinished(self) -> bool:
        """Whether there are bytes that make no whole character, or not yet."""
        return bool(self._held) or (self._bytes is not None and bool(self._bytes.getstate()[0]))


class Detokenizer:
    """The text of one sequence's output, and the search for its stop strings.

    An unfinished character at the very end is left out of the text, as in vLLM. A stop string
    ends the text; with `include_stop_str_in_output` behind it, else before it.
    """

    __slots__ = ("_drop_mark", "_min_tokens", "_new", "_num_tokens", "_old", "_stop", "_stream")

    def __init__(
        self, text: "TokenText", params: "SamplingParams", prompt_token_ids: "Sequence[int]"
    ) -> None:
        """Take the end of the prompt as context."""
        self._stream = TokenStream(
            text,
            skip_special_tokens=params.skip_special_tokens,
            spaces=params.spaces_between_special_tokens,
        )
        for token_id in prompt_token_ids[-_PROMPT_TOKENS:]:
            self._stream.push(token_id)
        # What the prompt leaves unfinished is given out as the output's when that finishes it,
        # but its mark is not.
        self._drop_mark = self._stream.unfinished()
        self._stop = StopStrings(params.stop, params.include_stop_str_in_output)
        self._min_tokens = params.min_tokens
        self._num_tokens = 0
        self._old = ""  # given out by `take`
        self._new: list[str] = []

    def push(self, token_id: int) -> str | None:
        """Take the next token.

        Returns:
            The stop string that it completed, if any; the text is cut by then. Those within
            the first `min_tokens` tokens don't count.
        """
        self._num_tokens += 1
        piece = self._stream.push(token_id)
        if not piece:
            return None
        if self._drop_mark:
            self._drop_mark = False
            piece = piece.removeprefix(UNFINISHED)
        self._new.append(piece)
        if not self._stop:
            return None
        match = self._stop.push(piece, search=self._num_tokens > self._min_tokens)
        if match is None:
            return None
        stop, surplus = match
        if surplus:
            self._new = ["".join(self._new)[:-surplus]]
        return stop

    def take(self, *, finished: bool) -> str:
        """Return the text that came since the last call.

        Args:
            finished: all of it; else without an end that may become a stop string.
        """
        new = "".join(self._new)
        held = 0 if finished or not self._stop else self._stop.held()
        visible = new[: len(new) - held]
        self._new = [new[len(new) - held :]] if held else []
        return visible

    def text(self, *, finished: bool) -> str:
        """Return the text from the beginning; for who does not call `take`."""
        self._old += self.take(finished=finished)
        return self._old
