"""Bad words never come, whatever tokens spell them."""

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from folovllm.sampling.bad_words import BadWordTracker
from folovllm.sampling_params import BadWords, SamplingParams
from folovllm.text.bad_words import BadWordCompiler
from folovllm.text.detokenizer import Detokenizer
from folovllm.text.token_text import TokenText
from tests.unit.text.spelling import stands_alone, wander

SIZES = {"byte_level": 402, "byte_fallback": 310, "unigram": 160, "words": 7, "word_piece": 210}
WORDS = {
    "byte_level": [
        "fox",
        " the",
        "don't",
        "世界",
        "é",
        "🙂",
        "x + 1",
        "\n",
        "T",
        "f(x)",
        " ",
        "Fuchs",
    ],
    "byte_fallback": ["the", "he", " th", "'", "é", "🙂", "a b", "t.", "世"],
    "unigram": ["the", "fox", "Hund", "世界", "don", "over the", "x"],
    "words": ["cat", "the cat", ".", "sat"],
    "word_piece": ["the", "fox", "over", "quick brown"],
    "slow": ["ab", "fox", "a b", "."],
    "slow_pieces": ["the", "dog", "a the", "é", "🙂"],
}
CASES = [(kind, word) for kind, words in WORDS.items() for word in words]


@pytest.fixture(scope="module")
def compilers(tokenizers):
    return {
        kind: BadWordCompiler(tokenizers[kind], SIZES.get(kind, len(tokenizers[kind])))
        for kind in WORDS
    }


def text_of(tokenizer, ids, *, skip=True):
    """As the engine gives it out."""
    params = SamplingParams(skip_special_tokens=skip)
    detokenizer = Detokenizer(TokenText(tokenizer), params, [])
    for token in ids:
        detokenizer.push(token)
    return detokenizer.take(finished=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@pytest.mark.parametrize(("kind", "word"), CASES)
@given(data=st.data())
def test_never_in_the_text(tokenizers, compilers, kind, word, data):
    tokenizer, size = tokenizers[kind], SIZES.get(kind, len(tokenizers[kind]))
    # Pieces of the word make it likely; any tokens at all may stand between them.
    spellings = [word, f" {word}", f"{word}s", *word, f" {word[:1]}", word[1:]]
    likely = {i for text in spellings for i in tokenizer.encode(text, add_special_tokens=False)}
    tokens = st.sampled_from(sorted(likely)) | st.integers(0, size - 1)
    skip = data.draw(st.booleans())
    choices = data.draw(st.lists(tokens, max_size=30))
    ids = wander(compilers[kind], word, choices, size, skip=skip)
    text = text_of(tokenizer, ids, skip=skip)
    for special in tokenizer.all_special_tokens:  # they are text of nobody's word
        text = text.replace(special, "\x00")
    assert not stands_alone(word, text)


def barred(compiler, words, ids, *, skip=True):
    tracker = BadWordTracker(compiler.compile(words, skip_special_tokens=skip), 402)
    for token in ids:
        tracker.append(token)
    return {int(token) for part in tracker.barred() for token in part}


class TestByteLevel:
    @pytest.fixture
    def compiler(self, compilers):
        return compilers["byte_level"]

    @pytest.fixture
    def encode(self, tokenizers):
        return tokenizers["byte_level"].encode

    def test_every_way_to_spell_it(self, compiler, encode):
        letters = [token for char in "fox" for token in encode(char)]
        spaced = [*encode(" "), *letters]
        for ids in (letters, spaced, encode("fox"), encode(" fox"), encode("\nfox")):
            assert ids[-1] in barred(compiler, ["fox"], ids[:-1])
            assert ids[-1] in barred(compiler, [" fox"], ids[:-1])

    def test_capitals_count(self, compiler, encode):
        letters = [token for char in "Fox" for token in encode(char)]
        assert letters[-1] not in barred(compiler, ["fox"], letters[:-1])

    def test_a_longer_word_may_come(self, compiler, encode):
        assert encode("the")[-1] not in barred(compiler, ["he"], [])
        assert encode(" the")[-1] not in barred(compiler, ["he"], [])
        assert not barred(compiler, ["t"], []) & set(encode(" the"))

    def test_a_special_token_does_not_part_a_word(self, compiler, encode, tokenizers):
        f, o, x = (encode(char)[0] for char in "fox")
        special = tokenizers["byte_level"].convert_tokens_to_ids("</s>")
        assert x in barred(compiler, ["fox"], [f, special, o, special])
        assert x not in barred(compiler, ["fox"], [f, special, o, special], skip=False)
        assert special not in barred(compiler, ["s"], [])  # though it is written with one

    def test_parts_of_a_character(self, compiler, encode):
        first, *others = encode("é")
        assert others or first in barred(compiler, ["é"], [])
        assert not others or others[-1] in barred(compiler, ["é"], [first, *others[:-1]])

    def test_half_a_character_bars_nothing(self, compiler):
        assert not barred(compiler, ["\ud800"], [])

    def test_several_words_do_not_mix(self, compiler, encode):
        f, o, _ = (encode(char)[0] for char in "fox")
        d, _, g = (encode(char)[0] for char in "dog")
        assert g not in barred(compiler, ["fox", "dog"], [f, o])
        assert g in barred(compiler, ["fox", "dog"], [d, o])

    def test_the_same_words_are_compiled_once(self, compiler):
        first = compiler.compile(["fox"], skip_special_tokens=True)
        assert compiler.compile(["fox"], skip_special_tokens=True) is first
        assert first != compiler.compile(["fox"], skip_special_tokens=False)
        assert isinstance(first, BadWords)
        hash(first)

    def test_a_long_word_is_quick(self, compiler):
        long = compiler.compile(["fox " * 2000], skip_special_tokens=True)
        assert len(long.steps) < 200_000
