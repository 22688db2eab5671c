"""What several rooms' tests need: tokenizers of every kind, the files of a machine, programs."""

import os

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

CORPUS = [
    "the quick brown fox jumps over the lazy dog, and then it sleeps.",
    "Der schnelle Fuchs springt über den faulen Hund; don't stop!",
    "今天天气很好。你好，世界！ 🙂👨‍👩‍👧‍👦 naïve café",
    "def f(x):\n    return x + 1\n\n",
] * 3
SPECIAL = ["<s>", "</s>"]


def _wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def byte_level() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return _wrap(backend)


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2 has it."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz.,!'", "▁t", "▁th", "▁the", "he", "▁▁", "\ufffd"]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {token: 256 + i for i, token in enumerate(letters)}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("h", "e"), ("▁", "▁")]
    backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _wrap(backend)


def unigram() -> PreTrainedTokenizerFast:
    """As T5 and Gemma have it: sentencepiece without bytes."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return _wrap(backend)


def word_piece() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=True)
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[UNK]"], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return _wrap(backend)


def words() -> PreTrainedTokenizerFast:
    """No decoder at all: tokenizers puts a space between any two tokens."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "the", "cat", "sat", "."])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrap(backend)


class SlowPieces(PreTrainedTokenizer):
    """A Python tokenizer of letters, which strips its text as sentencepiece ones do."""

    def __init__(self):
        self.pieces = ["<unk>", "▁", "▁▁", "▁the", *"thedoga.é你🙂"]
        self.ids = {piece: i for i, piece in enumerate(self.pieces)}
        super().__init__(unk_token="<unk>")

    @property
    def vocab_size(self):
        return len(self.pieces)

    def get_vocab(self):
        return {**self.ids, **self.added_tokens_encoder}

    def _tokenize(self, text, **_):
        return list(text.replace(" ", "▁"))

    def _convert_token_to_id(self, token):
        return self.ids.get(token, 0)

    def _convert_id_to_token(self, index):
        return self.pieces[index]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens).replace("▁", " ").strip()


KINDS = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "unigram": unigram,
    "word_piece": word_piece,
    "words": words,
    "slow_pieces": SlowPieces,
    "slow": ByT5Tokenizer,
}


@pytest.fixture(scope="session")
def tokenizers():
    """One of each kind, by name."""
    return {name: make() for name, make in KINDS.items()}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Write files of a machine's `/proc`, `/sys` and `/etc`; say where they are."""
    monkeypatch.delenv("container", raising=False)

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a program that prints a text and ends with a code before all others."""

    def make(name, text, code=0):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\nexit {code}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")

    return make
