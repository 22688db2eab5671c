"""A conversation as chat templates want it, from one as OpenAI's interface has it.

The two differ in three things, and vLLM (`vllm/entrypoints/chat_utils.py`,
`parse_chat_messages`) levels them in the same way:

- content is one text or a list of parts, by what the template wants (see `content_format`);
- the `arguments` of an earlier tool call are JSON text in the interface and an object in a
  template, which iterates over them or writes them as JSON itself;
- what an assistant thought has several names.

Whatever else a message has, a template may know, and so it is kept. Every role is taken too: a
template knows its own.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from folovllm.utils.checks import refuse

ContentFormat: TypeAlias = Literal["string", "openai"]
"""vLLM's names: the content is one text, or a list of parts as in OpenAI's interface."""

Message: TypeAlias = Mapping[str, Any]
"""One turn as OpenAI has it: `role`, `content`, and what else the template knows."""

_CONVERSATION = "a list of messages (dicts with a role and a content)"
_TEXT_OF_PART = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
"""The kinds of content parts that are text, and the key that has it."""

_REASONING = ("reasoning_content", "thinking", "reasoning")
_SAYS_WITHOUT_CONTENT = ("tool_calls", "function_call", "refusal", *_REASONING)
"""What an assistant's message may have in place of content."""


def to_conversations(
    messages: Sequence[Message] | Sequence[Sequence[Message]],
) -> list[Sequence[Message]]:
    """Return a list of conversations, whether one or several were passed, as vLLM takes them.

    Raises:
        ValueError: `messages` is neither, or is empty.
    """
    accepted = f"{_CONVERSATION}, or a list of such lists"
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        refuse("messages", messages, accepted)
    if not messages:
        refuse("messages", messages, f"{accepted}, not empty")
    items: list[Any] = list(messages)
    return items if isinstance(items[0], (list, tuple)) else [items]


def normalise_messages(
    messages: Sequence[Message], content_format: ContentFormat
) -> list[dict[str, Any]]:
    """Return a conversation as a template takes it, in new dicts of plain types.

    Args:
        messages: the turns; they are left as they are.
        content_format: "string" joins the parts of a content by newlines, "openai" makes a list
            of one part of a text.

    Raises:
        ValueError: a message is malformed; the message names its place.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        refuse("messages", messages, _CONVERSATION)
    if not messages:
        refuse("messages", messages, "a list of at least one message")
    return [
        _normalise(f"messages[{i}]", message, content_format) for i, message in enumerate(messages)
    ]


def to_plain(name: str, value: Any) -> Any:
    """Return a copy of what a template gets, of plain types alone, as transformers makes it.

    Pydantic models and dataclasses become dicts; anything else that is no plain data becomes a
    text that names its type. The template must not reach the methods of a caller's object.

    Raises:
        ValueError: it is nested too deeply, or holds itself.
    """
    try:
        return _to_plain(value)
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply, or holds itself") from error


def _to_plain(value: Any) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):  # of an enum, say
        return str.__str__(value)
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Mapping):
        return {_to_plain(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_to_plain, value))
    if isinstance(value, list):
        return list(map(_to_plain, value))
    return _to_plain_object(value)


def _to_plain_object(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if callable(dump := getattr(value, "model_dump", None)):
        return _to_plain(dump())
    if callable(item := getattr(value, "item", None)) and getattr(value, "shape", None) == ():
        return _to_plain(item())  # a number of NumPy's
    return f"<{type(value).__name__}>"


def _normalise(name: str, message: object, content_format: ContentFormat) -> dict[str, Any]:
    if callable(dump := getattr(message, "model_dump", None)):  # as OpenAI's client returns them
        message = dump()
    if not isinstance(message, Mapping):
        refuse(name, message, "a dict with a role and a content")
    # Templates tell a key that is missing from one that has a value; None is neither to them.
    turn = {key: value for key, value in message.items() if value is not None}
    role = turn.get("role")
    if not isinstance(role, str) or not role:
        refuse(f"{name}['role']", role, "a string that is not empty, such as 'user'")
    content = turn.get("content")
    if content is None and not (role == "assistant" and turn.keys() & set(_SAYS_WITHOUT_CONTENT)):
        refuse(f"{name}['content']", content, "a string or a list of text parts")
    turn["content"] = _to_format(f"{name}['content']", content, content_format)
    if "tool_calls" in turn:
        turn["tool_calls"] = _parse_calls(f"{name}.tool_calls", turn["tool_calls"])
        if not turn["tool_calls"]:
            del turn["tool_calls"]  # templates ask whether there are any by the key
    plain: dict[str, Any] = to_plain(name, turn)
    return _name_reasoning(plain)


def _to_format(name: str, content: object, content_format: ContentFormat) -> object:
    if content is None or isinstance(content, str):
        texts = [] if content is None else [content]
    elif isinstance(content, (list, tuple)):
        texts = [_text_of_part(f"{name}[{i}]", part) for i, part in enumerate(content)]
    else:
        refuse(name, content, "a string or a list of text parts")
    if content_format == "string":
        return "\n".join(texts)
    return [{"type": "text", "text": text} for text in texts]


def _text_of_part(name: str, part: object) -> str:
    text = part
    if isinstance(part, Mapping):
        kind = part.get("type")
        text = part.get(_TEXT_OF_PART.get(kind, "")) if isinstance(kind, str) else None
    if not isinstance(text, str):
        refuse(name, part, "{'type': 'text', 'text': ...}: this model reads text alone")
    return text


def _parse_calls(name: str, calls: object) -> list[object]:
    if not isinstance(calls, (list, tuple)):
        refuse(name, calls, "a list of tool calls")
    return [_parse_call(f"{name}[{i}]", call) for i, call in enumerate(calls)]


def _parse_call(name: str, call: object) -> object:
    """Return a tool call with its arguments as an object."""
    if callable(dump := getattr(call, "model_dump", None)):
        call = dump()
    if not isinstance(call, Mapping):
        refuse(name, call, "a dict with a function")
    function = call.get("function")
    if function is None:
        return call  # of a form that its template may know
    if not isinstance(function, Mapping):
        refuse(f"{name}.function", function, "a dict with a name and arguments")
    arguments = _parse_arguments(f"{name}.function.arguments", function.get("arguments"))
    return {**call, "function": {**function, "arguments": arguments}}


def _parse_arguments(name: str, arguments: object) -> object:
    """Return the arguments as an object; none at all are an empty one."""
    if arguments is None or arguments == "":
        return {}
    parsed = arguments
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            refuse(name, arguments, f"a JSON object ({error})")
    if not isinstance(parsed, (Mapping, list)):  # a list is taken, as in vLLM
        refuse(name, arguments, "a JSON object")
    return parsed


def _name_reasoning(turn: dict[str, Any]) -> dict[str, Any]:
    """Give what the assistant thought the names that templates read, as transformers does."""
    thoughts = next((turn[key] for key in _REASONING if key in turn), None)
    if thoughts is None:
        return turn
    return {"thinking": thoughts, **turn, "reasoning_content": thoughts}
