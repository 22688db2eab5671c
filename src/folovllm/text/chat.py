"""From a conversation to the text that a chat model was trained to answer."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from folovllm.config.settings import nearest
from folovllm.utils.checks import refuse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message: TypeAlias = Mapping[str, Any]
"""One turn as OpenAI has it: `role`, `content`, and what else the template knows."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def to_conversations(
    messages: Sequence[Message] | Sequence[Sequence[Message]],
) -> list[Sequence[Message]]:
    """Return a list of conversations, whether one or several were passed, as vLLM takes them.

    Raises:
        ValueError: `messages` is neither, or is empty.
    """
    accepted = "a list of messages (dicts with a role and a content), or a list of such lists"
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        refuse("messages", messages, accepted)
    if not messages:
        refuse("messages", messages, f"{accepted}, not empty")
    items: list[Any] = list(messages)
    return [items] if isinstance(items[0], Mapping) else items


def render_chat(
    tokenizer: "PreTrainedTokenizerBase | None",
    messages: Sequence[Message],
    *,
    chat_template: str | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    tools: list[Any] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Render one conversation with a chat template.

    The text has its special tokens: tokenise it with `add_special_tokens=False`.

    Args:
        tokenizer: has the checkpoint's template.
        messages: the turns so far; content given as a list of text parts is joined by newlines,
            as in vLLM.
        chat_template: a Jinja template in place of the checkpoint's.
        add_generation_prompt: end with the beginning of an answer.
        continue_final_message: leave the last message open, to be gone on with.
        tools: JSON schemas of functions that the model may call, for templates that know them.
        chat_template_kwargs: more names for the template.

    Raises:
        ValueError: there is no template, a message is malformed, or the template refuses them.
    """
    from jinja2 import TemplateError

    if tokenizer is None:
        raise ValueError("a chat needs a tokenizer, and the engine has none")
    if add_generation_prompt and continue_final_message:
        raise ValueError(
            "continue_final_message=True needs add_generation_prompt=False: the text ends either "
            "in the last message or in the beginning of a new one"
        )
    template = _find_template(tokenizer, chat_template, tools)
    turns = _check_messages(messages, template)
    try:
        text = tokenizer.apply_chat_template(
            turns,
            tools=tools,
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tokenize=False,
            **(chat_template_kwargs or {}),
        )
    except TemplateError as error:
        raise ValueError(f"the chat template refuses the messages: {error}") from error
    return str(text)


def _find_template(
    tokenizer: "PreTrainedTokenizerBase", chat_template: str | None, tools: list[Any] | None
) -> str:
    if chat_template is None and not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template: it "
            "may be no chat model. Pass a chat_template, or use generate with a prompt of its kind"
        )
    return str(tokenizer.get_chat_template(chat_template, tools))


def _check_messages(messages: Sequence[Message], template: str) -> list[dict[str, Any]]:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        refuse("messages", messages, "a list of messages, each a dict with a role and a content")
    if not messages:
        refuse("messages", messages, "a list of at least one message")
    return [
        _check_message(f"messages[{i}]", message, template) for i, message in enumerate(messages)
    ]


def _check_message(name: str, message: Message, template: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        refuse(name, message, "a dict with a role and a content")
    role = message.get("role")
    # Some templates have roles of their own, which they then name.
    if not isinstance(role, str) or not role or (role not in ROLES and role not in template):
        close = nearest(role, ROLES) if isinstance(role, str) else ""
        refuse(f"{name}['role']", role, f"one of {', '.join(ROLES)}{close}")
    turn = dict(message)
    content = message.get("content")
    if content is None:
        # An answer that calls tools may say nothing besides.
        if not (role == "assistant" and message.get("tool_calls")):
            refuse(f"{name}['content']", content, "a string or a list of text parts")
        turn["content"] = ""
    else:
        turn["content"] = _join(f"{name}['content']", content)
    return turn


def _join(name: str, content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        refuse(name, content, "a string or a list of text parts")
    return "\n".join(_part_text(f"{name}[{i}]", part) for i, part in enumerate(content))


def _part_text(name: str, part: object) -> str:
    text = part
    if isinstance(part, Mapping):
        text = part.get("text") if part.get("type") == "text" else None
    if not isinstance(text, str):
        refuse(name, part, "{'type': 'text', 'text': ...}: this model reads text alone")
    return text
