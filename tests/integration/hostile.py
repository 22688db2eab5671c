"""What a user's program may pass in place of a prompt or a parameter."""

import itertools
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import torch

from folovllm import SamplingParams
from folovllm.text.input_processor import TokenizedPrompt


class Number(int):
    """An integer whose methods raise."""

    def __int__(self):
        raise OSError("no number")

    __float__ = __index__ = __repr__ = __lt__ = __int__


class Word(str):
    """A string whose methods raise."""

    __slots__ = ()

    def __str__(self):
        raise OSError("no word")

    __len__ = __bool__ = __iter__ = encode = find = startswith = __repr__ = __str__


class Table(dict):
    """A dictionary whose methods raise."""

    def items(self):
        raise OSError("no table")

    __iter__ = keys = get = __getitem__ = __repr__ = items


class Odd:
    """Cannot be iterated, measured or compared."""

    def __iter__(self):
        return self

    def __next__(self):
        raise KeyError("odd")

    def __len__(self):
        raise OSError("no length")

    def __eq__(self, other):
        raise OSError("compares with nothing")

    __hash__ = None


HALF = "\ud83d"

VALUES = {
    "none": lambda: None,
    "true": lambda: True,
    "zero": lambda: 0,
    "minus": lambda: -1,
    "more minus": lambda: -7,
    "three": lambda: 3,
    "huge": lambda: 10**30,
    "unprintable": lambda: 10**5000,
    "half": lambda: 0.5,
    "nan": lambda: math.nan,
    "infinity": lambda: math.inf,
    "complex": lambda: 1j,
    "fraction": lambda: Fraction(1, 2),
    "decimal": lambda: Decimal("0.5"),
    "number": lambda: Number(2),
    "text": lambda: "hot",
    "empty": lambda: "",
    "surrogate": lambda: HALF,
    "word": lambda: Word("cat"),
    "bytes": lambda: b"cat",
    "object": object,
    "class": lambda: int,
    "odd": Odd,
    "list": lambda: [1],
    "mixed": lambda: [1, "cat", None],
    "surrogates": lambda: ["cat", HALF],
    "words": lambda: [Word("cat")],
    "empty strings": lambda: [""],
    "out of range": lambda: [10**9],
    "negative ids": lambda: [-1],
    "nested": lambda: [[1]],
    "set": lambda: {1, 2},
    "generator": lambda: (i for i in (1, 2)),
    "broken": lambda: (1 // i for i in (1, 0)),
    "bias": lambda: {1: 0.5},
    "bias of text": lambda: {1: "x"},
    "text of bias": lambda: {"x": 1},
    "table": lambda: Table({1: 1.0}),
    "float32": lambda: np.float32(0.7),
    "int64": lambda: np.int64(5),
    "bool_": lambda: np.bool_(True),
    "array": lambda: np.array([1, 2]),
    "0-d array": lambda: np.array(3),
    "tensor": lambda: torch.tensor([1, 2]),
    "0-d tensor": lambda: torch.tensor(3),
    "0-d float tensor": lambda: torch.tensor(0.5),
    "meta tensor": lambda: torch.tensor(3, device="meta"),
}
"""Values by name, made anew each time; each is tried for each field."""

PROMPTS = {
    **VALUES,
    "infinite": lambda: itertools.repeat(5),
    "nul": lambda: "cat\0mat",
    "long text": lambda: "cat " * 100_000,
    "long ids": lambda: [5] * 1_000_000,
    "no text": lambda: {"prompt": None},
    "both": lambda: {"prompt": "cat", "prompt_token_ids": [1]},
    "other key": lambda: {"promt": "cat", 5: 6},
    "ids in text": lambda: {"prompt": [1]},
    "text in ids": lambda: {"prompt_token_ids": "cat"},
    "broken in ids": lambda: {"prompt_token_ids": (1 // i for i in (1, 0))},
    "surrogate salt": lambda: {"prompt": "cat", "cache_salt": HALF},
    "number salt": lambda: {"prompt": "cat", "cache_salt": 5},
    "empty salt": lambda: {"prompt": "cat", "cache_salt": ""},
    "word salt": lambda: {"prompt_token_ids": [1] * 9, "cache_salt": Word("salt")},
    "tokenized text": lambda: TokenizedPrompt("cat", "cat"),
    "tokenized none": lambda: TokenizedPrompt(5, None),
    "tokenized nothing": lambda: TokenizedPrompt(None, []),
    "tokenized out of range": lambda: TokenizedPrompt(None, [96]),
    "tokenized salt": lambda: TokenizedPrompt(None, [1] * 9, 5),
    "tokenized mixed": lambda: TokenizedPrompt(None, [1, "2"]),
    "two": lambda: ["cat", "mat"],
    "several and bad": lambda: ["cat", HALF],
    "matrix": lambda: np.ones((2, 3), int),
}

MESSAGES = {
    **{name: VALUES[name] for name in ("none", "three", "text", "bytes", "odd", "broken", "list")},
    "empty": list,
    "no role": lambda: [{"content": "cat"}],
    "no content": lambda: [{"role": "user"}],
    "number": lambda: [{"role": "user", "content": 5}],
    "surrogate": lambda: [{"role": "user", "content": HALF}],
    "role": lambda: [{"role": 5, "content": "cat"}],
    "nested": lambda: [[[{"role": "user", "content": "cat"}]]],
    "parts": lambda: [{"role": "user", "content": [{"type": "image"}, 5]}],
}

FIELDS = sorted(SamplingParams.__slots__)
