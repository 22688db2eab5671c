import copy
import dataclasses
import json
import pickle
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from itertools import repeat

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from folovllm.sampling_params import RequestOutputKind, SamplingParams, SamplingType

DEFAULTS = {
    "n": 1,
    "best_of": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "stop": [],
    "stop_token_ids": [],
    "bad_words": [],
    "logit_bias": None,
    "allowed_token_ids": None,
    "ignore_eos": False,
    "max_tokens": 16,
    "min_tokens": 0,
    "seed": None,
    "logprobs": None,
    "prompt_logprobs": None,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "detokenize": True,
    "truncate_prompt_tokens": None,
    "output_kind": RequestOutputKind.CUMULATIVE,
    "use_beam_search": False,
}
FLOATS = ["temperature", "top_p", "min_p"]
PENALTIES = ["presence_penalty", "frequency_penalty", "repetition_penalty"]
INTS = ["n", "best_of", "top_k", "max_tokens", "min_tokens", "seed", "logprobs", "prompt_logprobs"]
BOOLS = [name for name, value in DEFAULTS.items() if isinstance(value, bool)]
ID_LISTS = ["stop_token_ids", "allowed_token_ids"]
STRING_LISTS = ["stop", "bad_words"]


def as_dict(params: SamplingParams) -> dict[str, object]:
    return {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}


def test_the_defaults_are_the_contract():
    assert as_dict(SamplingParams()) == DEFAULTS


@pytest.mark.parametrize(
    ("given_values", "kept"),
    [
        ({"n": np.int64(2)}, {"n": 2}),
        ({"n": 2, "best_of": 5}, {"n": 2, "best_of": 5}),
        ({"best_of": 2, "n": 2, "temperature": 0}, {"best_of": 2, "temperature": 0.0}),
        ({"stop": "\n"}, {"stop": ["\n"]}),
        ({"stop": ("a", "b")}, {"stop": ["a", "b"]}),
        ({"stop": []}, {"stop": []}),
        ({"stop": [], "detokenize": False}, {"stop": []}),
        ({"stop_token_ids": range(3)}, {"stop_token_ids": [0, 1, 2]}),
        ({"stop_token_ids": np.array([4, 5])}, {"stop_token_ids": [4, 5]}),
        ({"bad_words": ["x"], "detokenize": False}, {"bad_words": ["x"]}),
        ({"logit_bias": {5: -100, 6: 100}}, {"logit_bias": {5: -100.0, 6: 100.0}}),
        ({"allowed_token_ids": {7}}, {"allowed_token_ids": [7]}),
        ({"max_tokens": None, "min_tokens": 9}, {"max_tokens": None, "min_tokens": 9}),
        ({"max_tokens": 4, "min_tokens": 4}, {"min_tokens": 4}),
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"temperature": np.float32(0.5)}, {"temperature": 0.5}),
        ({"temperature": np.array(0.5)}, {"temperature": 0.5}),
        ({"temperature": torch.tensor(0.5)}, {"temperature": 0.5}),
        ({"temperature": Fraction(1, 2)}, {"temperature": 0.5}),
        ({"top_k": np.int64(5)}, {"top_k": 5}),
        ({"top_k": torch.tensor(5)}, {"top_k": 5}),
        ({"top_k": np.array(5)}, {"top_k": 5}),
        ({"top_k": SamplingType.RANDOM}, {"top_k": 1}),
        ({"top_k": 0}, {"top_k": -1}),
        ({"top_k": 10**30}, {"top_k": 10**30}),
        ({"stop_token_ids": (i for i in (4, 5))}, {"stop_token_ids": [4, 5]}),
        ({"stop_token_ids": torch.tensor([4, 5])}, {"stop_token_ids": [4, 5]}),
        ({"allowed_token_ids": np.arange(2)}, {"allowed_token_ids": [0, 1]}),
        ({"logit_bias": {np.int64(5): torch.tensor(1)}}, {"logit_bias": {5: 1.0}}),
        ({"top_k": 1}, {"top_k": 1}),
        ({"min_p": 1}, {"min_p": 1.0}),
        ({"presence_penalty": -2, "frequency_penalty": 2}, {"frequency_penalty": 2.0}),
        ({"repetition_penalty": 0.01}, {"repetition_penalty": 0.01}),
        ({"seed": 0}, {"seed": 0}),
        ({"seed": -1}, {"seed": None}),
        ({"seed": 2**63 - 1}, {"seed": 2**63 - 1}),
        ({"logprobs": 0, "prompt_logprobs": -1}, {"logprobs": 0, "prompt_logprobs": -1}),
    ],
)
def test_accepted_values_and_how_they_are_kept(given_values, kept):
    params = SamplingParams(**given_values)
    for field, value in kept.items():
        assert getattr(params, field) == value
        assert type(getattr(params, field)) is type(value)


REFUSED = [
    ("n", 0, ">= 1"),
    ("n", -3, ">= 1"),
    ("best_of", 0, ">= 1"),
    ("temperature", -0.1, ">= 0"),
    ("top_p", 0, "(0, 1]"),
    ("top_p", -0.5, "(0, 1]"),
    ("top_p", 1.01, "(0, 1]"),
    ("n", 16385, "16384"),
    ("best_of", 10**9, "16384"),
    ("top_k", -2, "-1 or 0 (off) or an integer >= 1"),
    ("top_k", torch.tensor(True), "integer"),
    ("top_k", torch.tensor(5.0), "integer"),
    ("top_k", torch.tensor(5, device="meta"), "integer"),
    ("top_k", np.bool_(True), "integer"),
    ("top_k", np.array([5]), "integer"),
    ("temperature", torch.tensor(float("nan")), "finite"),
    ("temperature", np.str_("1"), "number"),
    ("temperature", Decimal(1), "number"),
    ("stop_token_ids", np.array(5), "a list of token ids"),
    ("stop_token_ids", torch.tensor(5), "a list of token ids"),
    ("stop_token_ids", bytearray(b"ab"), "a list of token ids"),
    ("min_p", -0.01, "[0, 1]"),
    ("min_p", 1.01, "[0, 1]"),
    ("presence_penalty", 2.5, "[-2, 2]"),
    ("presence_penalty", -2.5, "[-2, 2]"),
    ("frequency_penalty", 3, "[-2, 2]"),
    ("frequency_penalty", -3, "[-2, 2]"),
    ("repetition_penalty", 0, "> 0"),
    ("repetition_penalty", -1.0, "> 0"),
    ("max_tokens", 0, ">= 1"),
    ("max_tokens", -1, ">= 1"),
    ("min_tokens", -1, ">= 0"),
    ("min_tokens", 17, "<= 16 (max_tokens)"),
    ("logprobs", -2, "-1 (the vocabulary) or an integer >= 0"),
    ("prompt_logprobs", -2, "-1 (the vocabulary) or an integer >= 0"),
    ("seed", 2**63, str(2**63 - 1)),
    ("seed", -(2**63) - 1, str(-(2**63))),
    ("allowed_token_ids", [], "at least one"),
    ("logit_bias", [(1, 2)], "a dict"),
    ("logit_bias", "5", "a dict"),
    # Wrong types.
    *[(field, value, "number") for field in FLOATS + PENALTIES for value in ("hot", None, 1j)],
    *[(field, value, "number") for field in FLOATS + PENALTIES for value in (True, [0.5])],
    *[(field, value, "integer") for field in INTS for value in (1.5, 1.0, "1", True, [1])],
    *[(field, value, "True or False") for field in BOOLS for value in (0, 1, "false", None)],
    *[(field, value, "a list of") for field in ID_LISTS for value in (5, False, "5", {5: 1})],
    ("stop", 5, "a list of strings"),
    ("stop", {"a": 1}, "a list of strings"),
    ("stop", b"a", "a list of strings"),
    ("bad_words", "one", "a list of strings"),
    ("bad_words", 0, "a list of strings"),
    # Not finite.
    *[
        (field, float(value), "finite")
        for field in FLOATS + PENALTIES
        for value in ("nan", "inf", "-inf")
    ],
    ("temperature", 10**400, "finite"),
]


@pytest.mark.parametrize(("field", "value", "accepted"), REFUSED)
def test_a_refusal_names_the_field_the_value_and_what_is_accepted(field, value, accepted):
    with pytest.raises(ValueError, match=f"^{field} must be ") as error:
        SamplingParams(**{field: value})
    message = str(error.value)
    # Only the beginning of a long value is shown; a list that cannot be read says why.
    assert f"got {repr(value)[:10]}" in message or "reading it raised TypeError" in message
    assert accepted in message


@pytest.mark.parametrize(
    ("field", "value", "place", "item"),
    [
        *[(field, ["a", ""], f"{field}[1]", "''") for field in STRING_LISTS],
        *[(field, [1], f"{field}[0]", "1") for field in STRING_LISTS],
        ("stop", "", "stop[0]", "''"),
        *[(field, [3, -1], f"{field}[1]", "-1") for field in ID_LISTS],
        *[(field, [3, True], f"{field}[1]", "True") for field in ID_LISTS],
        *[(field, ["3"], f"{field}[0]", "'3'") for field in ID_LISTS],
        *[(field, [1.5], f"{field}[0]", "1.5") for field in ID_LISTS],
        ("logit_bias", {"5": 1.0}, "logit_bias key", "'5'"),
        ("logit_bias", {-5: 1.0}, "logit_bias key", "-5"),
        ("logit_bias", {5: 100.5}, "logit_bias[5]", "100.5"),
        ("logit_bias", {5: "1"}, "logit_bias[5]", "'1'"),
        ("logit_bias", {5: True}, "logit_bias[5]", "True"),
        ("logit_bias", {5: float("nan")}, "logit_bias[5]", "nan"),
        ("logit_bias", {5: float("-inf")}, "logit_bias[5]", "-inf"),
    ],
)
def test_a_refusal_names_the_wrong_item_of_a_collection(field, value, place, item):
    with pytest.raises(ValueError, match="must be ") as error:
        SamplingParams(**{field: value})
    assert str(error.value).startswith(f"{place} must be ")
    assert str(error.value).endswith(f"got {item}")


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"n": 3, "best_of": 2}, ["best_of", ">= 3 (n)", "got 2"]),
        ({"best_of": 2, "temperature": 0}, ["best_of", "temperature=0", "1 (n)", "got 2"]),
        ({"stop": "x", "detokenize": False}, ["stop", "detokenize=False", "got ['x']"]),
        ({"min_tokens": 5, "max_tokens": 4}, ["min_tokens", "4 (max_tokens)", "got 5"]),
    ],
)
def test_contradictions_are_refused(values, parts):
    with pytest.raises(ValueError, match="must be ") as error:
        SamplingParams(**values)
    assert all(part in str(error.value) for part in parts)


def broken(*_):
    yield 1
    raise KeyError("broken")


@pytest.mark.parametrize("field", [*ID_LISTS, *STRING_LISTS])
def test_an_iterator_that_raises_is_refused_with_its_reason(field):
    with pytest.raises(ValueError, match=rf"{field} must be a list of.*KeyError: 'broken'"):
        SamplingParams(**{field: broken()})


def test_an_iterator_without_end_is_refused(monkeypatch):
    monkeypatch.setattr("folovllm.utils.checks.MOST_ITEMS", 1000)
    with pytest.raises(ValueError, match=r"stop_token_ids must be.* got more than 1000"):
        SamplingParams(stop_token_ids=repeat(5))


class Number(int):
    def __int__(self):
        raise OSError("no")

    __float__ = __index__ = __repr__ = __int__


class Word(str):
    __slots__ = ()

    def __str__(self):
        raise OSError("no")

    __len__ = __bool__ = encode = find = __repr__ = __str__


@pytest.mark.parametrize("field", [*FLOATS, *PENALTIES, *INTS])
def test_a_number_of_a_class_that_raises_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be"):
        SamplingParams(**{field: Number(1)})
    with pytest.raises(ValueError, match=f"{field} must be"):
        SamplingParams(**{field: 10**5000 if field in FLOATS else -(10**5000)})


@pytest.mark.parametrize("field", STRING_LISTS)
def test_strings_are_kept_plain_and_whole(field):
    [kept] = getattr(SamplingParams(**{field: [Word("a")]}), field)
    assert type(kept) is str
    assert kept == "a"
    with pytest.raises(ValueError, match=rf"{field}\[1\] must be valid Unicode"):
        SamplingParams(**{field: ["a", "b\ud83d"]})


CHANGES = {
    "temperature": "hot",
    "top_p": "x",
    "top_k": -5,
    "logit_bias": {1: "x"},
    "max_tokens": 0,
    "best_of": 0,
    "n": 0,
    "stop": ["\ud83d"],
    "bad_words": "word",
    "seed": "s",
    "output_kind": 1,
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_checked_copy_checks_what_was_set_without_a_check(field):
    params = SamplingParams()
    setattr(params, field, CHANGES[field])
    with pytest.raises(ValueError, match=f"^{field}"):
        params.checked_copy()


def test_a_checked_copy_shares_nothing():
    params = SamplingParams(stop=["a"], stop_token_ids=[1], bad_words=["b"], logit_bias={1: 1})
    copied = params.checked_copy(seed=5)
    for changed in (params.stop, params.stop_token_ids, params.bad_words):
        changed.append(changed[0])
    params.logit_bias[2] = 2
    assert copied == SamplingParams(
        stop=["a"], stop_token_ids=[1], bad_words=["b"], logit_bias={1: 1}, seed=5
    )


def test_a_checked_copy_of_what_is_not_whole():
    with pytest.raises(ValueError, match="all of its fields"):
        SamplingParams.__new__(SamplingParams).checked_copy()


def test_a_checked_copy_of_a_subclass_is_plain():
    class Mine(SamplingParams):
        def __init__(self):
            super().__init__(n=2)

    assert type(Mine().checked_copy(top_k=3)) is SamplingParams


class TestBestOf:
    """What nobody gave is not kept as if somebody had."""

    def test_it_follows_n(self):
        params = SamplingParams(n=2)
        assert params.best_of == 2
        params.n = 5
        assert params.best_of == 5
        assert params == SamplingParams(n=5, best_of=5)
        params.best_of = 7
        assert params.best_of == 7
        params.best_of = None
        assert params.best_of == 5

    @pytest.mark.parametrize(
        "change",
        [
            dataclasses.replace,
            SamplingParams.checked_copy,
            lambda params, **values: SamplingParams(**{**dataclasses.asdict(params), **values}),
            lambda params, **values: dataclasses.replace(copy.deepcopy(params), **values),
            lambda params, **values: dataclasses.replace(copy.copy(params), **values),
            lambda params, **values: dataclasses.replace(
                pickle.loads(pickle.dumps(params)), **values
            ),
        ],
    )
    def test_a_copy_with_another_n(self, change):
        assert change(SamplingParams(n=2), n=3).best_of == 3
        assert change(SamplingParams(n=2), n=1).best_of == 1
        assert change(SamplingParams(n=2), best_of=3).best_of == 3
        assert change(SamplingParams(n=2, best_of=3), best_of=None).best_of == 2
        assert change(SamplingParams(n=2), n=1, temperature=0).temperature == 0
        with pytest.raises(ValueError, match="best_of"):
            change(SamplingParams(n=2, best_of=3), n=4)

    def test_it_reads_as_a_number(self):
        assert f"{SamplingParams().best_of!r} {json.dumps(SamplingParams().best_of)}" == "1 1"


def test_beam_search_is_not_supported_yet():
    with pytest.raises(NotImplementedError, match="use_beam_search"):
        SamplingParams(use_beam_search=True)


def test_an_unknown_name_or_a_positional_value_is_a_type_error():
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=0.5)
    with pytest.raises(TypeError):
        SamplingParams(1, 0.5)


@pytest.mark.parametrize(
    ("temperature", "sampling_type"),
    [
        (0, SamplingType.GREEDY),
        (-0.0, SamplingType.GREEDY),
        (5e-324, SamplingType.RANDOM),
        (1.0, SamplingType.RANDOM),
    ],
)
def test_greedy_is_exactly_temperature_zero(temperature, sampling_type):
    assert SamplingParams(temperature=temperature).sampling_type is sampling_type


def test_the_sampling_types_are_vllms_numbers():
    assert [(kind.name, int(kind)) for kind in SamplingType] == [("GREEDY", 0), ("RANDOM", 1)]


@pytest.mark.parametrize("field", ["stop", "stop_token_ids", "bad_words", "allowed_token_ids"])
def test_a_list_changed_by_the_caller_changes_nothing(field):
    values = ["a"] if field in STRING_LISTS else [1]
    params = SamplingParams(**{field: values})
    values.append(values[0])
    assert len(getattr(params, field)) == 1


def test_a_logit_bias_changed_by_the_caller_changes_nothing():
    bias = {1: 0.5}
    params = SamplingParams(logit_bias=bias)
    bias[2] = 0.5
    assert params.logit_bias == {1: 0.5}


def test_two_instances_share_no_list():
    first, second = SamplingParams(), SamplingParams()
    first.stop.append("x")
    first.stop_token_ids.append(1)
    first.bad_words.append("x")
    assert second == SamplingParams()


def test_replace_checks_again_what_was_set_without_a_check():
    params = SamplingParams()
    params.top_p = 5
    with pytest.raises(ValueError, match="top_p"):
        dataclasses.replace(params)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "SamplingParams()"),
        ({"temperature": 0, "n": 2}, "SamplingParams(n=2, temperature=0.0)"),
        ({"n": 2, "best_of": 3}, "SamplingParams(n=2, best_of=3)"),
        ({"stop": "a", "seed": 7}, "SamplingParams(stop=['a'], seed=7)"),
        ({"max_tokens": None}, "SamplingParams(max_tokens=None)"),
    ],
)
def test_repr_shows_what_is_not_the_default(values, text):
    assert repr(SamplingParams(**values)) == text


ids = st.integers(0, 200_000)
words = st.lists(st.text(min_size=1, max_size=5), max_size=3)


@st.composite
def valid_values(draw: st.DrawFn) -> dict[str, object]:
    n = draw(st.integers(1, 8))
    temperature = draw(st.just(0.0) | st.floats(0, 10))
    max_tokens = draw(st.none() | st.integers(1, 4096))
    detokenize = draw(st.booleans())
    return {
        "n": n,
        "best_of": n if temperature == 0 else draw(st.integers(n, 16)),
        "temperature": temperature,
        "top_p": draw(st.floats(0, 1, exclude_min=True)),
        "top_k": draw(st.just(-1) | st.integers(1, 100_000)),
        "min_p": draw(st.floats(0, 1)),
        "presence_penalty": draw(st.floats(-2, 2)),
        "frequency_penalty": draw(st.floats(-2, 2)),
        "repetition_penalty": draw(st.floats(0, 10, exclude_min=True)),
        "stop": draw(words) if detokenize else [],
        "stop_token_ids": draw(st.lists(ids, max_size=3)),
        "bad_words": draw(words),
        "logit_bias": draw(st.none() | st.dictionaries(ids, st.floats(-100, 100), max_size=3)),
        "allowed_token_ids": draw(st.none() | st.lists(ids, min_size=1, max_size=3)),
        "ignore_eos": draw(st.booleans()),
        "max_tokens": max_tokens,
        "min_tokens": draw(st.integers(0, 4096 if max_tokens is None else max_tokens)),
        "seed": draw(st.none() | st.integers(0, 2**63 - 1)),
        "logprobs": draw(st.none() | st.integers(-1, 20)),
        "prompt_logprobs": draw(st.none() | st.integers(-1, 20)),
        "skip_special_tokens": draw(st.booleans()),
        "spaces_between_special_tokens": draw(st.booleans()),
        "include_stop_str_in_output": draw(st.booleans()),
        "detokenize": detokenize,
        "truncate_prompt_tokens": draw(st.none() | st.integers(1, 4096)),
        "output_kind": draw(st.sampled_from(RequestOutputKind)),
        "use_beam_search": False,
    }


@settings(max_examples=40, deadline=None)
@given(valid_values())
def test_any_valid_combination_is_kept_and_comes_back(values):
    params = SamplingParams(**values)
    assert as_dict(params) == values
    assert eval(repr(params)) == params
    assert dataclasses.replace(params) == params
    assert copy.deepcopy(params) == params
    assert pickle.loads(pickle.dumps(params)) == params


MODULES = ["sampling_params", "request", "outputs", "utils", "utils.common", "utils.checks"]


def test_the_vocabulary_does_not_import_torch():
    # One process for all of them: the last one not importing torch says it of each.
    code = "; ".join(f"import folovllm.{name}" for name in MODULES)
    code += "; import sys; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert result.stdout.strip() == "[]"
