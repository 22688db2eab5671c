"""Tokenizers of GGUF files: how text is split, what is added, which ids end a turn."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from folovllm.errors import ModelLoadError
from folovllm.loading.gguf.header import GgufFile, GgufTensor
from folovllm.loading.gguf.pre_tokenizers import SPLITS, make_pre_tokenizer
from folovllm.loading.gguf.special import ending_ids
from folovllm.loading.gguf.tokenizer import make_tokenizer

BYTES = sorted(set(ByteLevel.alphabet()))
MERGES = ["Ċ Ċ", "Ġ Ġ", "ĠĠ ĠĠ", "1 2", "12 3", "a b", "ĉ ĉ", "' s", "Ġ a"]
WORDS = [merge.replace(" ", "") for merge in MERGES]
TOKENS = ["<|end|>", "<|begin|>", *BYTES, *WORDS]


def gguf(tokens=TOKENS, control=(0, 1), **keys):
    types = np.ones(len(tokens), np.int32)
    types[list(control)] = 3
    said = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": types,
        "merges": MERGES,
        "bos_token_id": 1,
        "eos_token_id": 0,
        **keys,
    }
    said = {f"tokenizer.ggml.{key}": value for key, value in said.items() if value is not None}
    template = {k.removeprefix("tokenizer.ggml."): said.pop(k) for k in list(said) if "chat" in k}
    said |= {f"tokenizer.{key}": value for key, value in template.items()}
    embedding = GgufTensor(
        "token_embd.weight", (len(tokens), 4), GGMLQuantizationType.F32, np.zeros((len(tokens), 16))
    )
    return GgufFile(Path("x.gguf"), "llama", said, {"token_embd.weight": embedding})


def split(name, text):
    return [text[begin:end] for _, (begin, end) in make_pre_tokenizer(name).pre_tokenize_str(text)]


GPT2 = ["I", "'ve", "  ", " 123", " cats", "!!", "\n", "\n", "x"]
SAMPLE = "I've   123 cats!!\n\nx"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("smollm", "12 a\n\n1", ["1", "2", " a", "\n\n", "1"]),
        ("smollm", "x =  12", ["x", " =", "  ", "1", "2"]),
        ("starcoder", "f(10)", ["f", "(", "1", "0", ")"]),
        ("gpt-2", "I'VE  12\n\nx", ["I", "'", "VE", " ", " 12", "\n", "\n", "x"]),
        ("llama-bpe", "I'VE 12345\n\n x", ["I", "'VE", " ", "123", "45", "\n\n", " x"]),
        ("qwen2", "a 123\n\n x", ["a", " ", "1", "2", "3", "\n\n", " x"]),
        ("tekken", "HelloWorld 12", ["Hello", "World", " ", "1", "2"]),
        ("gpt-4o", "It'S HTMLPage 1234", ["It'S", " HTMLPage", " ", "123", "4"]),
        ("deepseek-llm", "a\n\nb 12", ["a", "\n", "\n", "b", " ", "1", "2"]),
        ("deepseek-coder", "a\nb 12", ["a", "\n", "b", " ", "1", "2"]),
        ("deepseek-v3", "a 1234你好", ["a", " ", "123", "4", "你好"]),
        ("falcon", "a+b 12345", ["a", "+", "b", " ", "123", "45"]),
        ("command-r", "42!", ["4", "2", "!"]),
        ("bloom", "你好。 hi, x", ["你好", "。", " hi", ",", " x"]),
        ("viking", "a1 b", ["a", "1", " b"]),
        ("qwen35", "a\u0301b 1", ["a\u0301b", " ", "1"]),
    ],
)
def test_how_text_is_split(name, text, expected):
    assert split(name, text) == expected


@pytest.mark.parametrize("name", sorted(SPLITS))
def test_nothing_is_lost(name):
    for text in (SAMPLE, "é à 你好 ٣ 😀\t\r\n  end  ", "'s 'S", ""):
        assert "".join(split(name, text)) == text


def test_the_default_models_is_that_of_its_published_tokenizer():
    published = Tokenizer(
        models.BPE({t: i for i, t in enumerate(TOKENS)}, [tuple(m.split()) for m in MERGES])
    )
    published.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    ours = make_tokenizer(gguf())
    texts = (
        "Steps:\n\n1. Mix\n\n2. Bake",
        "x =  12",
        "if a:\n    5",
        "a,b\n\t\t7",
        "1234 + 56 ²½Ⅷ",
    )
    for text in texts:
        assert ours(text)["input_ids"] == published.encode(text).ids
    assert ours.convert_ids_to_tokens(ours("  12")["input_ids"]) == ["ĠĠ", "1", "2"]


@pytest.mark.parametrize("pre", ["never-heard-of", "default", None])
def test_an_unknown_name_is_refused(pre):
    with pytest.raises(ModelLoadError, match=r"tokenizer\.ggml\.pre") as raised:
        make_tokenizer(gguf(pre=pre))
    assert repr(pre or "") in str(raised.value)


def test_a_beginning_is_added_where_the_name_or_the_file_says_so():
    text = "ab"
    plain = make_tokenizer(gguf())(text)["input_ids"]
    assert make_tokenizer(gguf(pre="llama-bpe"))(text)["input_ids"] == [1, *plain]
    assert make_tokenizer(gguf(pre="llama-bpe", add_bos_token=False))(text)["input_ids"] == plain
    both = make_tokenizer(gguf(add_bos_token=True, add_eos_token=True))
    assert both(text)["input_ids"] == [1, *plain, 0]
    assert both(text, add_special_tokens=False)["input_ids"] == plain


def test_control_tokens_are_found_in_text_and_left_out_of_it():
    tokenizer = make_tokenizer(gguf())
    assert tokenizer("<|end|>ab")["input_ids"][0] == 0
    assert tokenizer.decode([0, *tokenizer("ab")["input_ids"]], skip_special_tokens=True) == "ab"
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("<|end|>", "<|begin|>")
    assert tokenizer.pad_token is None
    assert len(tokenizer) == len(TOKENS)


def test_it_is_the_same_after_it_was_saved(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = make_tokenizer(gguf(pre="llama-bpe", chat_template="{{ messages[0].content }}"))
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("  12", "ab<|end|>", SAMPLE):
        assert saved(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert saved.chat_template == "{{ messages[0].content }}"


def test_templates_with_names():
    templates = {"chat_template": "a", "chat_template.tool_use": "b"}
    assert make_tokenizer(gguf(**templates)).chat_template == {"default": "a", "tool_use": "b"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "bert"}, "'bert'"),
        ({"model": None}, "tokenizer.ggml.model = ''"),
        ({"tokens": ["a", "a"], "control": ()}, "2 tokens"),
        ({"merges": ["a zzz"]}, "merges that are none"),
        ({"token_type": np.ones(3)}, f"a list of {len(TOKENS)} numbers"),
        ({"eos_token_id": 10**6}, "its vocabulary has"),
        ({"eos_token_id": "x"}, "expected a whole number"),
        ({"add_bos_token": 3}, "expected true or false"),
        ({"add_space_prefix": True}, "SentencePiece"),
        ({"suppress_tokens": np.ones(2)}, "tokenizer.ggml.suppress_tokens"),
        ({"precompiled_charsmap": np.ones(2)}, "tokenizer.ggml.precompiled_charsmap"),
        ({"add_sep_token": True}, "tokenizer.ggml.add_sep_token = True"),
    ],
)
def test_what_cannot_be_honoured_is_refused(changes, words):
    with pytest.raises(ModelLoadError) as raised:
        make_tokenizer(gguf(**changes))
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("tokens", "control", "keys", "expected"),
    [
        (["e", "b", "t"], (0, 1, 2), {}, [0]),
        (["e", "b", "t"], (0, 1, 2), {"eot_token_id": 2}, [0, 2]),
        (["e", "b", "t"], (0, 1, 2), {"eot_token_id": 2, "eom_token_id": 1}, [0, 2, 1]),
        (["e", "b", "<|eot_id|>"], (0, 1, 2), {}, [0, 2]),  # older files of Llama 3
        (["e", "b", "<end_of_turn>"], (0, 1, 2), {}, [0, 2]),
        (["<|im_end|>", "b", "<|endoftext|>"], (0, 1, 2), {}, [0, 2]),  # as Qwen is published
        (["e", "b", "<|eot_id|>"], (0, 1), {}, [0]),  # a text like any other
        (["e", "b"], (0, 1), {"eos_token_id": None}, []),
    ],
)
def test_the_ids_that_end_a_turn(tokens, control, keys, expected):
    assert ending_ids(gguf(tokens, control, **keys)) == expected


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
LETTERS = ["▁", "h", "e", "l", "o", "▁h", "he", "ll", "hell", "▁hell", "▁hello"]
SCORES = [0.0, 0, 0, *[0.0] * 256, *[-100.0] * 5, -5, -1, -2, -3, -4, -6]
SENTENCEPIECE = {
    "model": "llama",
    "pre": "default",
    "merges": None,
    "scores": np.array(SCORES, np.float32),
    "eos_token_id": None,
    "bos_token_id": None,
}


def sentencepiece(**changes):
    tokens = [*PIECES, *LETTERS]
    types = np.array([2, 3, 3, *[6] * 256, *[1] * len(LETTERS)], np.int32)
    return make_tokenizer(gguf(tokens, (), **{**SENTENCEPIECE, "token_type": types, **changes}))


def test_sentencepiece():
    tokenizer = sentencepiece()
    hello = tokenizer("hello é\n")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(hello) == [
        *("<s>", "▁hello", "▁", "<0xC3>", "<0xA9>", "<0x0A>")
    ]
    assert tokenizer.decode(hello, skip_special_tokens=True) == "hello é\n"
    assert (tokenizer.unk_token, tokenizer.eos_token) == ("<unk>", "</s>")  # llama.cpp's


def test_sentencepiece_merges_by_scores():
    # Not from the left: `he` and `ll` before `▁h`.
    tokens = sentencepiece().convert_ids_to_tokens(sentencepiece()("hel")["input_ids"])
    assert tokens == ["<s>", "▁", "he", "l"]


def test_sentencepiece_without_a_space_or_a_beginning():
    tokenizer = sentencepiece(add_space_prefix=False, add_bos_token=False)
    ids = tokenizer("hello")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["hell", "o"]
    assert tokenizer.decode(ids) == "hello"
