import pytest
from hypothesis import example, given, strategies as st
from tokenizers import pre_tokenizers

from folovllm.sampling_params import SamplingParams
from folovllm.text.detokenizer import UNFINISHED, Detokenizer, TokenStream
from folovllm.text.token_text import TokenText

KINDS = ["byte_level", "byte_fallback", "unigram", "word_piece", "words", "slow_pieces", "slow"]
WHOLE = ["byte_level", "byte_fallback", "slow"]  # their tokens spell any text

FAMILY = "👨‍👩‍👧‍👦"
TEXTS = st.one_of(
    st.text(),
    st.lists(st.sampled_from(["the", " ", "  ", "\n", "é", "e\u0301", "你", "🙂", FAMILY])).map(
        "".join
    ),
    st.text(alphabet=st.characters(categories=["Cc", "Mn", "So", "Zs"])),
)


@pytest.fixture(scope="session")
def texts(tokenizers):
    return {name: TokenText(tokenizer) for name, tokenizer in tokenizers.items()}


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def pieces_of(text: TokenText, ids, **options):
    stream = TokenStream(text, **options)
    return [stream.push(token_id) for token_id in ids]


def whole(text: str) -> str:
    return text.removesuffix(UNFINISHED)


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
@example("the naïve café ")
@example(f"{FAMILY}{FAMILY} é 🙂")
@example("a\ufffdb\ufffd")
def test_pieces_of_a_text_join_to_what_decode_gives(tokenizers, texts, kind, text):
    ids = encode(tokenizers[kind], text)
    pieces = pieces_of(texts[kind], ids, skip_special_tokens=False)
    # A mark at the end that is the text's own is left out too, but not where bytes are tokens.
    decoded = texts[kind].decode(ids)
    assert "".join(pieces) in (
        decoded if kind == "byte_fallback" else whole(decoded),
        whole(decoded),
    )
    if kind in WHOLE and UNFINISHED not in text:
        assert not any(UNFINISHED in piece for piece in pieces)


@given(data=st.data())
@pytest.mark.parametrize("kind", ["byte_level", "unigram", "word_piece", "words", "slow_pieces"])
def test_pieces_of_any_tokens_join_to_what_decode_gives(tokenizers, texts, kind, data):
    ids = data.draw(st.lists(st.integers(0, len(tokenizers[kind]) - 1), max_size=30))
    assert "".join(pieces_of(texts[kind], ids, skip_special_tokens=False)) == whole(
        texts[kind].decode(ids)
    )


@given(data=st.data())
@example(data=[258, *"你".encode(), 0xE5, 258])
@example(data=[0xED, 0xA0])  # half of a surrogate
@example(data=[0xED, 0xA0, 258])
@example(data=[0xED, 0xA0, 0x80, 0xED, 0x9F, 0xBF])
def test_byte_fallback_decodes_each_character_alone(tokenizers, texts, data):
    """Where tokenizers gives up the whole run of bytes for one that is wrong."""
    tokenizer = tokenizers["byte_fallback"]
    size = len(tokenizer) - 2
    mark = tokenizer.convert_tokens_to_ids(UNFINISHED)
    common = st.sampled_from([*"你🙂é".encode(), 0xFF, 0xED, 0xA0, 256, 262, mark])
    anything = st.lists(st.integers(0, size - 1) | common)
    ids = data if isinstance(data, list) else data.draw(anything)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    spelt = b"".join(
        bytes([i]) if i < 256 else token.replace("▁", " ").encode()
        for i, token in zip(ids, tokens, strict=True)
    ).decode("utf-8", "replace")
    pieces = pieces_of(texts["byte_fallback"], ids)
    expected = spelt
    if ids and ids[0] >= 256:
        expected = expected.removeprefix(" ")
    # Only at the end may something be missing: one character that is not finished.
    joined = "".join(pieces)
    assert joined in (expected, expected.removesuffix(UNFINISHED))


@given(st.lists(st.integers(0, 400)), st.data())
def test_byte_level_gives_out_all_but_an_unfinished_character(texts, ids, data):
    stream, out = TokenStream(texts["byte_level"], skip_special_tokens=False), ""
    for n, token_id in enumerate(ids, 1):
        out += stream.push(token_id)
        assert out == whole(texts["byte_level"].decode(ids[:n]))
        assert stream.unfinished() == texts["byte_level"].decode(ids[:n]).endswith(UNFINISHED)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_bytes_that_are_no_character_hold_nothing_up(tokenizers, texts, kind):
    name = "ÿ" if kind == "byte_level" else "<0xFF>"
    token_id = tokenizers[kind].convert_tokens_to_ids(name)
    pieces = pieces_of(texts[kind], [token_id] * 100)
    assert len("".join(pieces)) >= 99


@pytest.mark.parametrize("before", range(24, 44))
def test_a_character_after_many_bytes_that_are_none(tokenizers, texts, before):
    tokenizer = tokenizers["byte_level"]
    wrong = [tokenizer.convert_tokens_to_ids("ÿ")] * before
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    [(spelt, _)] = alphabet.pre_tokenize_str("🙂a")
    ids = wrong + tokenizer.convert_tokens_to_ids(list(spelt))
    assert "".join(pieces_of(texts["byte_level"], ids)) == f"{UNFINISHED * before}🙂a"


def test_half_a_character_comes_when_it_is_whole(tokenizers, texts):
    ids = encode(tokenizers["slow"], "🙂a")
    assert pieces_of(texts["slow"], ids) == ["", "", "", "🙂", "a"]


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "words"])
@given(text=st.text(alphabet="the quick, dog don't. \n你é🙂", min_size=1), data=st.data())
def test_goes_on_from_the_prompt(tokenizers, texts, kind, text, data):
    ids = encode(tokenizers[kind], text)
    if not ids:
        return
    split = data.draw(st.integers(1, len(ids)))
    before = texts[kind].decode(ids[:split])
    after = texts[kind].decode(ids)
    if before.endswith(UNFINISHED) or (kind == "slow" and not after.startswith(before)):
        return  # within a character
    params = SamplingParams(skip_special_tokens=False)
    detokenizer = Detokenizer(texts[kind], params, ids[:split])
    for token_id in ids[split:]:
        detokenizer.push(token_id)
    assert before + detokenizer.text(finished=True) == whole(after)


def test_a_character_that_the_prompt_began_is_the_outputs(tokenizers, texts):
    prompt = encode(tokenizers["byte_fallback"], "a🙂")[:-2]
    detokenizer = Detokenizer(texts["byte_fallback"], SamplingParams(), prompt)
    for token_id in "🙂".encode()[-2:]:
        detokenizer.push(token_id)
    assert detokenizer.text(finished=True) == "🙂"


def test_the_mark_of_what_the_prompt_left_unfinished_is_not_the_outputs(tokenizers, texts):
    ids = encode(tokenizers["byte_fallback"], "a🙂")[:-2]
    detokenizer = Detokenizer(texts["byte_fallback"], SamplingParams(), ids)
    detokenizer.push(encode(tokenizers["byte_fallback"], "b")[-1])
    assert detokenizer.text(finished=True) == "b"


class TestSpecialTokens:
    @pytest.mark.parametrize("kind", KINDS[:-2])
    def test_are_left_out_or_not(self, tokenizers, texts, kind):
        tokenizer = tokenizers[kind]
        ids = encode(tokenizer, "the")
        eos = tokenizer.eos_token_id
        assert "".join(pieces_of(texts[kind], [*ids, eos])) == "the"
        with_eos = "".join(pieces_of(texts[kind], [*ids, eos], skip_special_tokens=False))
        assert with_eos == tokenizer.decode([*ids, eos])
        assert with_eos.endswith("</s>")

    def test_may_stand_between_the_halves_of_a_character(self, tokenizers, texts):
        first, *rest = "é".encode()
        eos = tokenizers["byte_fallback"].eos_token_id
        assert pieces_of(texts["byte_fallback"], [first, eos, *rest]) == ["", "", "é"]

    @pytest.mark.parametrize(
        ("spaces", "expected"), [(True, "the <s> </s> the"), (False, "the <s></s> the")]
    )
    def test_spaces_between_them(self, tokenizers, texts, spaces, expected):
        the, bos, eos = 1, tokenizers["words"].bos_token_id, tokenizers["words"].eos_token_id
        ids = [the, bos, eos, the]
        pieces = pieces_of(texts["words"], ids, skip_special_tokens=False, spaces=spaces)
        assert "".join(pieces) == expected

    def test_spaces_do_not_matter_where_they_are_skipped(self, tokenizers, texts):
        ids = [1, tokenizers["words"].bos_token_id, 2]
        assert "".join(pieces_of(texts["words"], ids, spaces=False)) == "the cat"


@pytest.mark.parametrize("kind", KINDS)
def test_rows_beyond_the_tokenizer_have_no_text(tokenizers, texts, kind):
    beyond = len(tokenizers[kind]) + 5
    the = encode(tokenizers[kind], "the")
    pieces = pieces_of(texts[kind], [*the, *[beyond] * 100, *the])
    assert "".join(pieces) == texts[kind].decode(the + the)
    assert texts[kind].of(beyond) == ""


class TestTokenText:
    def test_byte_ids_are_found_only_where_they_are_bytes(self, texts):
        assert {name for name, text in texts.items() if text.byte_ids} == {"byte_fallback"}
        assert texts["byte_fallback"].byte_ids[0x41] == b"A"

    def test_text_of_one_token(self, tokenizers, texts):
        assert texts["words"].of(2) == texts["words"].of(2) == "cat"

    def test_special_ids(self, tokenizers, texts):
        assert texts["words"].special_ids == {5, 6}
        assert texts["slow"].special_ids == set(tokenizers["slow"].all_special_ids)


def run(text, params, ids, prompt=(1,)):
    """Push tokens until one stops it; return what was streamed, the stop, how many it took."""
    detokenizer = Detokenizer(text, params, list(prompt))
    streamed = []
    for n, token_id in enumerate(ids, 1):
        stop = detokenizer.push(token_id)
        streamed.append(detokenizer.take(finished=stop is not None or n == len(ids)))
        if stop is not None:
            return streamed, stop, n
    return streamed, None, len(ids)


class TestStopStrings:
    def test_across_tokens(self, tokenizers, texts):
        ids = encode(tokenizers["slow"], "one END two")
        assert run(texts["slow"], SamplingParams(stop="END"), ids) == (
            [*"one ", "", "", ""],
            "END",
            7,
        )

    def test_kept_when_asked_for(self, tokenizers, texts):
        ids = encode(tokenizers["slow"], "one END two")
        params = SamplingParams(stop="END", include_stop_str_in_output=True)
        assert run(texts["slow"], params, ids)[:2] == ([*"one END"], "END")

    def test_what_only_looked_like_one_comes_later(self, tokenizers, texts):
        ids = encode(tokenizers["slow"], "a ENE EN")
        streamed, stop, _ = run(texts["slow"], SamplingParams(stop="END"), ids)
        assert streamed == ["a", " ", "", "", "EN", "E ", "", "EN"]
        assert stop is None

    @pytest.mark.parametrize(("min_tokens", "end"), [(0, 2), (1, 2), (2, 4), (3, 4), (4, 6)])
    def test_not_within_the_first_min_tokens(self, tokenizers, texts, min_tokens, end):
        ids = encode(tokenizers["slow"], "ababab")
        params = SamplingParams(stop="ab", min_tokens=min_tokens)
        assert run(texts["slow"], params, ids)[1:] == ("ab", end)

    def test_not_in_the_prompt(self, tokenizers, texts):
        prompt, ids = encode(tokenizers["slow"], "a"), encode(tokenizers["slow"], "bc")
        assert run(texts["slow"], SamplingParams(stop="ab"), ids, prompt)[1] is None

    def test_text_so_far_never_shows_what_is_cut_later(self, tokenizers, texts):
        detokenizer = Detokenizer(texts["slow"], SamplingParams(stop="cd"), [1])
        shown = []
        for token_id in encode(tokenizers["slow"], "abcd"):
            stop = detokenizer.push(token_id)
            shown.append(detokenizer.text(finished=stop is not None))
        assert shown == ["a", "ab", "ab", "ab"]


@pytest.mark.parametrize("kind", ["byte_level", "slow"])
def test_tokens_without_text_are_not_kept(tokenizers, texts, kind):
    beyond = len(tokenizers[kind]) + 5
    stream = TokenStream(texts[kind])
    assert not any(map(stream.push, [0xFF + 3 if kind == "slow" else beyond] * 1000))
    assert len(stream._ids) <= 32
