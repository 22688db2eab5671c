from dataclasses import dataclass
from enum import Enum

import numpy as np
import pytest
from pydantic import BaseModel

from folovllm.text.messages import normalise_messages, to_conversations, to_plain

USER = {"role": "user", "content": "Hi"}


def normalise(message, form="string"):
    [turn] = normalise_messages([message], form)
    return turn


def calling(arguments, **others):
    function = {"name": "get", "arguments": arguments}
    call = {"id": "1", "type": "function", "function": function}
    return {"role": "assistant", "tool_calls": [call], **others}


class TestContent:
    @pytest.mark.parametrize(
        "content",
        [
            "Hi",
            ["Hi"],
            [{"type": "text", "text": "Hi"}],
            [{"type": "input_text", "text": "Hi"}],
            [{"type": "output_text", "text": "Hi", "annotations": []}],
            [{"type": "refusal", "refusal": "Hi"}],
            [{"type": "thinking", "thinking": "Hi"}],
            ({"type": "text", "text": "Hi", "cache_control": {}},),
        ],
    )
    def test_one_text_in_both_forms(self, content):
        message = {"role": "user", "content": content}
        assert normalise(message)["content"] == "Hi"
        assert normalise(message, "openai")["content"] == [{"type": "text", "text": "Hi"}]

    def test_several_parts(self):
        message = {"role": "user", "content": ["a", {"type": "text", "text": "b"}]}
        assert normalise(message)["content"] == "a\nb"
        assert [p["text"] for p in normalise(message, "openai")["content"]] == ["a", "b"]

    @pytest.mark.parametrize(
        "others",
        [
            {"tool_calls": [{"id": "1"}]},
            {"function_call": {"name": "f"}},
            {"reasoning": "hm"},
            {"refusal": "no"},
        ],
    )
    def test_an_assistant_may_say_nothing(self, others):
        for content in ({}, {"content": None}):
            message = {"role": "assistant", **content, **others}
            assert normalise(message)["content"] == ""
            assert normalise(message, "openai")["content"] == []


class TestToolCalls:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ('{"city": "Rome"}', {"city": "Rome"}),
            ({"city": "Rome"}, {"city": "Rome"}),
            ("", {}),
            (None, {}),
            ({}, {}),
            ("{}", {}),
            ("[1]", [1]),
            ([1], [1]),
            (' {"a": {"b": [null, true, 1.5]}} ', {"a": {"b": [None, True, 1.5]}}),
        ],
    )
    def test_arguments_are_an_object(self, arguments, expected):
        message = calling(arguments)
        [call] = normalise(message)["tool_calls"]
        assert call == {
            "id": "1",
            "type": "function",
            "function": {"name": "get", "arguments": expected},
        }
        assert message == calling(arguments)  # the caller's is as it was

    @pytest.mark.parametrize("arguments", ["{", "Rome", "5", "null", 5, True, "[" * 100_000, b"{}"])
    def test_arguments_that_are_none(self, arguments):
        place = r"messages\[0\].tool_calls\[0\].function.arguments must be a JSON object"
        with pytest.raises(ValueError, match=place):
            normalise(calling(arguments))

    @pytest.mark.parametrize(
        ("calls", "message"),
        [
            ("f()", r"messages\[0\].tool_calls must be a list"),
            ({"id": "1"}, r"messages\[0\].tool_calls must be a list"),
            (["f()"], r"messages\[0\].tool_calls\[0\] must be a dict with a function"),
            ([{"function": "f"}], r"tool_calls\[0\].function must be a dict with a name"),
        ],
    )
    def test_malformed(self, calls, message):
        with pytest.raises(ValueError, match=message):
            normalise({"role": "assistant", "content": "", "tool_calls": calls})

    def test_an_empty_list_is_left_out(self):
        message = {"role": "assistant", "content": "a", "tool_calls": []}
        assert normalise(message) == {"role": "assistant", "content": "a"}

    def test_the_answer_of_a_tool_keeps_what_belongs_to_it(self):
        message = {"role": "tool", "content": "5", "tool_call_id": "1", "name": "get"}
        assert normalise(message) == message


def test_what_is_none_is_left_out():
    message = {**USER, "name": None, "tool_calls": None, "weight": 0}
    assert normalise(message) == {**USER, "weight": 0}


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content", "thinking"])
def test_thoughts_have_the_names_that_templates_read(key):
    turn = normalise({"role": "assistant", "content": "a", key: "hm"})
    assert turn["reasoning_content"] == turn["thinking"] == "hm"


def test_objects_of_a_client():
    class Call(BaseModel):
        id: str
        function: dict[str, str]

    class Answer(BaseModel):
        role: str
        content: str | None
        tool_calls: list[Call]

    call = Call(id="1", function={"name": "f", "arguments": "{}"})
    turn = normalise(Answer(role="assistant", content=None, tool_calls=[call]))
    assert turn["tool_calls"] == [{"id": "1", "function": {"name": "f", "arguments": {}}}]


def test_plain_types():
    class Color(str, Enum):
        RED = "red"

    @dataclass
    class Point:
        x: int

    given = {Color.RED: [np.int64(1), np.float32(0.5), np.bool_(False), Point(2), (3,), 1 << 80]}
    plain = to_plain("x", given)
    assert plain == {"red": [1, 0.5, False, {"x": 2}, (3,), 1 << 80]}
    assert [type(item) for item in plain["red"][:3]] == [int, float, bool]
    assert type(next(iter(plain))) is str
    assert to_plain("x", np.zeros(3)) == "<ndarray>"


class TestConversations:
    def test_one_or_several(self):
        assert to_conversations([USER]) == [[USER]]
        assert to_conversations([[USER], [USER]]) == [[USER], [USER]]

    @pytest.mark.parametrize("messages", ["Hi", USER, None, [], 5])
    def test_neither(self, messages):
        with pytest.raises(ValueError, match="messages must be a list of messages"):
            to_conversations(messages)
