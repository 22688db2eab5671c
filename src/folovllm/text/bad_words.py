"""Which tokens complete a bad word, worked out once when a request is made.

A word is barred in the text and not as one sequence of tokens: " beautiful" is one token or
"be", "autiful" or "beaut", "iful", and the model may take any of them. The worker that samples
has no tokenizer. So what it gets is a small graph in token ids alone (`BadWords`): a state says
how much of a word the output ends with, a step which token leads from state to state, an end
which token would complete the word and is barred.

Text is compared in bytes, as a token of a byte-level vocabulary may be a part of a character. A
word counts where it stands alone, not within a longer one: with "her" barred "there" may come.
What a token's end leaves open is barred: "cat" goes where "cats" might have followed in a token
of its own, and "cats" as one token may come. Scripts that put no space between words count
everywhere. vLLM bars one or two sequences of tokens (`SamplingParams.update_from_tokenizer`),
and the word comes by another. Not seen is what a decoder changes across tokens, as the clean-up
of WordPiece does with punctuation; there the tokenizer's own spelling is barred.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from folovllm.sampling_params import BadWords
from folovllm.text.token_text import TokenText, byte_characters, is_byte_level

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Step = tuple[int, int, int]
End = tuple[int, int]

_NUM_KEPT = 64


class BadWordCompiler:
    """Finds the tokens that spell words; one for a tokenizer, made when it is first needed."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> None:
        """Read the text of every token.

        Args:
            tokenizer: the model's.
            vocab_size: number of the model's embeddings; those without a token have no text.
        """
        self._tokenizer = tokenizer
        self._text = TokenText(tokenizer)
        self._is_byte_level = is_byte_level(tokenizer)
        special = self._text.special_ids
        ids = [i for i in range(vocab_size) if i not in special and self._text.knows(i)]
        texts = self._read_bytes(ids) if self._is_byte_level else self._read_texts(ids)
        self._vocabulary = _Vocabulary({i: text for i, text in texts.items() if text})
        self._special = tuple(sorted(i for i in special if i < vocab_size))
        spelt = {i for i, text in texts.items() if text} | special
        self._silent = tuple(i for i in range(vocab_size) if i not in spelt)
        self._kept: dict[tuple[tuple[str, ...], bool], BadWords] = {}

    def compile(self, words: Iterable[str], *, skip_special_tokens: bool) -> BadWords:
        """Return the graph of some words.

        Args:
            words: as given; spaces around one make no difference.
            skip_special_tokens: whether special tokens are left out of the text, where what
                stands before one and what stands behind it make a word together.
        """
        key = tuple(words), skip_special_tokens
        if key not in self._kept:
            if len(self._kept) >= _NUM_KEPT:
                self._kept.clear()
            self._kept[key] = self._compile(*key)
        return self._kept[key]

    def _compile(self, words: tuple[str, ...], skip_special_tokens: bool) -> BadWords:
        steps: list[Step] = []
        ends: list[End] = []
        base = 0  # of the next word's states
        for word in dict.fromkeys(word.strip(" ") or word for word in words):
            spelling = word.encode(errors="surrogatepass")
            steps += self._vocabulary.steps(spelling, base)
            ends += self._vocabulary.ends(spelling, base)
            base += len(spelling)
            for ids in self._own_spellings(word):
                places = [0, *range(base + 1, base + len(ids))]
                steps += zip(places, ids, places[1:], strict=False)
                ends.append((places[-1], ids[-1]))
                base += len(ids)
        silent = (*self._silent, *(self._special if skip_special_tokens else ()))
        return _without_unreached(steps, ends, silent)

    def _own_spellings(self, word: str) -> Iterator[list[int]]:
        """Yield how the tokenizer spells a word, where texts of single tokens do not tell all."""
        half = any("\ud800" <= char <= "\udfff" for char in word)  # of a character: in no text
        if self._is_byte_level or half:
            return
        for text in (word, f" {word}"):
            ids = self._tokenizer.encode(text, add_special_tokens=False)
            if ids and word in self._text.decode(ids):  # no unknown token in its place
                yield ids

    def _read_bytes(self, ids: Sequence[int]) -> dict[int, bytes]:
        """Return the bytes of byte-level tokens: a character stands for each."""
        bytes_of = {char: byte for byte, char in byte_characters().items()}
        names = self._tokenizer.convert_ids_to_tokens(list(ids))
        texts = {}
        for token_id, name in zip(ids, names, strict=True):
            spelt = [bytes_of.get(char) for char in name]
            known = [byte for byte in spelt if byte is not None]
            # An added token may have other characters, and is then meant as it is written.
            texts[token_id] = bytes(known) if len(known) == len(spelt) else name.encode()
        return texts

    def _read_texts(self, ids: Sequence[int]) -> dict[int, bytes]:
        """Return what each token adds to a text, between two tokens of a letter or so."""
        decode = self._text.decode
        letter = next(
            (i for i in ids if decode([i]).isascii() and decode([i]).strip().isalnum()), None
        )
        if letter is None:
            return {i: decode([i]).encode(errors="surrogatepass") for i in ids}
        before = decode([letter])
        behind = decode([letter, letter])[len(before) :]
        texts = {}
        for i in ids:
            text = decode([letter, i, letter])
            whole = text.startswith(before) and text.endswith(behind)
            text = text[len(before) : len(text) - len(behind)] if whole else decode([i])
            texts[i] = text.encode(errors="surrogatepass")
        return {**texts, **self._text.byte_ids}


class _Vocabulary:
    """The texts of all tokens, sorted from both ends, so that a word costs microseconds."""

    def __init__(self, texts: dict[int, bytes]) -> None:
        self._ids: defaultdict[bytes, list[int]] = defaultdict(list)
        for token_id, text in texts.items():
            self._ids[text].append(token_id)
        self._forward = sorted(self._ids)
        self._backward = sorted(text[::-1] for text in self._ids)
        self._longest = max(map(len, self._ids), default=0)
        # One text to search in: a byte is a character here, and the separator is no byte.
        self._joined = "\u0100".join(text.decode("latin-1") for text in self._forward)
        self._starts = _running_sum(len(text) + 1 for text in self._forward)

    def steps(self, word: bytes, base: int) -> Iterator[Step]:
        """Yield the tokens that lead to a part of a word; state `base + i` has i bytes of it."""
        for i in range(1, min(len(word), self._longest + 1)):
            for text in self._that_end_with(word[:i]):
                if not _joins(text[: len(text) - i], word):
                    yield from ((0, token_id, base + i) for token_id in self._ids[text])
        for i in range(1, len(word)):
            for j in range(i + 1, min(len(word), i + self._longest + 1)):
                for token_id in self._ids.get(word[i:j], ()):
                    yield base + i, token_id, base + j

    def ends(self, word: bytes, base: int) -> Iterator[End]:
        """Yield the tokens that complete a word, each with the state before it."""
        for text in self._that_contain(word):
            yield from ((0, token_id) for token_id in self._ids[text])
        for i in range(max(1, len(word) - self._longest), len(word)):
            rest = word[i:]
            for text in self._that_begin_with(rest):
                if not _joins(word, text[len(rest) :]):
                    yield from ((base + i, token_id) for token_id in self._ids[text])

    def _that_begin_with(self, part: bytes) -> Iterator[bytes]:
        for index in range(bisect_left(self._forward, part), len(self._forward)):
            if not self._forward[index].startswith(part):
                return
            yield self._forward[index]

    def _that_end_with(self, part: bytes) -> Iterator[bytes]:
        part = part[::-1]
        for index in range(bisect_left(self._backward, part), len(self._backward)):
            if not self._backward[index].startswith(part):
                return
            yield self._backward[index][::-1]

    def _that_contain(self, word: bytes) -> Iterator[bytes]:
        """Yield the texts in which a word stands alone."""
        found: set[int] = set()
        pattern = word.decode("latin-1")
        at = self._joined.find(pattern)
        while at >= 0:
            index = bisect_right(self._starts, at) - 1
            text, start = self._forward[index], at - self._starts[index]
            alone = not _joins(text[:start], word) and not _joins(word, text[start + len(word) :])
            if alone and index not in found:
                found.add(index)
                yield text
            at = self._joined.find(pattern, at + 1)


def _running_sum(lengths: Iterable[int]) -> list[int]:
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    return starts


def _joins(left: bytes, right: bytes) -> bool:
    """Whether the last character of a text and the first of the next are of one word."""
    before, after = left[-4:].decode(errors="replace")[-1:], right[:4].decode(errors="replace")[:1]
    return _is_of_word(before) and _is_of_word(after)


def _is_of_word(char: str) -> bool:
    """Whether a word goes on beyond a character: a letter of a script with spaces, or a digit.

    A part of a character is none, and so the word counts.
    """
    if not (char.isalnum() or char == "_"):
        return False
    # Thai to Burmese, Khmer; Chinese, Japanese, Korean and beyond.
    return not ("\u0e00" <= char <= "\u109f" or "\u1780" <= char <= "\u17ff" or char >= "\u2e80")


def _without_unreached(
    steps: Iterable[Step], ends: Iterable[End], silent: tuple[int, ...]
) -> BadWords:
    """Leave out what stands behind states that no tokens lead to."""
    behind: defaultdict[int, set[Step]] = defaultdict(set)
    for step in steps:
        behind[step[0]].add(step)
    reached, new = {0}, [0]
    while new:
        following = {step[2] for step in behind[new.pop()]} - reached
        reached |= following
        new += following
    kept = sorted(step for state in reached for step in behind[state])
    return BadWords(tuple(kept), tuple(sorted({end for end in ends if end[0] in reached})), silent)
