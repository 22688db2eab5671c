"""From a conversation to the text that a chat model was trained to answer."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from folovllm.text.messages import ContentFormat, Message, normalise_messages, to_plain
from folovllm.text.template_process import TemplateProcess
from folovllm.utils.checks import refuse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ContentFormatOption: TypeAlias = Literal["auto", "string", "openai"]
"""vLLM's `chat_template_content_format`; "auto" finds out what the template wants."""

Tool: TypeAlias = Mapping[str, Any] | Callable[..., Any]
"""A JSON schema of a function; or a function with types and a docstring, to make one of."""

_CONTENT_FORMATS = ("auto", "string", "openai")
_OWN_NAMES = (
    "messages",
    "tools",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
)
"""What `chat_template_kwargs` must not set: it is an option of its own, or not for templates."""

_END_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_NUM_DETECTED = 64


class ChatRenderer:
    """Renders conversations with a tokenizer's chat template, in a process that can be ended.

    The texts are those of `tokenizer.apply_chat_template`; see `template_process` for why that
    is not called.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase | None") -> None:
        """Take the tokenizer, which has the checkpoint's template; None refuses every chat."""
        self._tokenizer = tokenizer
        self._process = TemplateProcess()
        self._formats: dict[str, str] = {}  # by template

    def render(
        self,
        messages: Sequence[Message],
        *,
        chat_template: str | None = None,
        chat_template_content_format: ContentFormatOption = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Tool] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Render one conversation.

        The text has its special tokens: tokenise it with `add_special_tokens=False`.

        Args:
            messages: the turns so far; see `normalise_messages`.
            chat_template: a Jinja template in place of the checkpoint's, or the name of one of
                the checkpoint's.
            chat_template_content_format: the form of content that the template gets: "string",
                or "openai" for a list of parts; "auto" finds out what it wants.
            add_generation_prompt: end with the beginning of an answer.
            continue_final_message: leave the last message open, to be gone on with.
            tools: functions that the model may call, for templates that know them.
            chat_template_kwargs: more names for the template, `documents` among them.

        Raises:
            ValueError: there is no template, a message or an option is malformed, or the
                template refuses them, fails or exceeds its limits.
        """
        if add_generation_prompt and continue_final_message:
            raise ValueError(
                "continue_final_message=True needs add_generation_prompt=False: the text ends "
                "either in the last message or in the beginning of a new one"
            )
        tokenizer = self._check_tokenizer()
        template = _find_template(tokenizer, chat_template, tools)
        content_format = self._choose_format(template, chat_template_content_format)
        turns = normalise_messages(messages, content_format)
        begun = _mark_end(turns, template) if continue_final_message else None
        names = {
            **tokenizer.special_tokens_map,
            "documents": None,
            **_check_names(chat_template_kwargs),
            "messages": turns,
            "tools": _to_schemas(tools),
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._process.render(template, names)
        return text if begun is None else _cut_behind(begun, text)

    def _check_tokenizer(self) -> "PreTrainedTokenizerBase":
        if self._tokenizer is None:
            raise ValueError("a chat needs a tokenizer, and the engine has none")
        return self._tokenizer

    def _choose_format(self, template: str, asked: ContentFormatOption) -> ContentFormat:
        if asked not in _CONTENT_FORMATS:
            accepted = ", ".join(map(repr, _CONTENT_FORMATS))
            refuse("chat_template_content_format", asked, f"one of {accepted}")
        if asked != "auto":
            return asked
        if template not in self._formats:
            if len(self._formats) >= _NUM_DETECTED:
                self._formats.clear()  # requests bring templates of their own
            self._formats[template] = self._process.detect(template)
        return "openai" if self._formats[template] == "openai" else "string"


def _find_template(
    tokenizer: "PreTrainedTokenizerBase", chat_template: str | None, tools: object
) -> str:
    if chat_template is None and not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template: it "
            "may be no chat model. Pass a chat_template, or use generate with a prompt of its kind"
        )
    given: object = chat_template  # nobody's types keep a user from passing something else
    if given is not None and not isinstance(given, str):
        refuse("chat_template", given, "a Jinja template, as a string")
    found: object = tokenizer.get_chat_template(chat_template, None if tools is None else [])
    if not isinstance(found, str):
        refuse("the checkpoint's chat template", found, "a Jinja template, as a string")
    return found


def _check_names(names: object) -> dict[str, Any]:
    """Return more names for a template, in plain types."""
    if names is None:
        return {}
    if not isinstance(names, Mapping) or not all(isinstance(name, str) for name in names):
        refuse("chat_template_kwargs", names, "a dict of names and values")
    if own := [name for name in names if name in _OWN_NAMES]:
        raise ValueError(f"chat_template_kwargs must not have {own[0]!r}: it is set otherwise")
    documents = names.get("documents")
    if documents is not None and not _is_list_of(documents, Mapping):
        refuse("chat_template_kwargs['documents']", documents, "a list of dicts with a text")
    plain: dict[str, Any] = to_plain("chat_template_kwargs", names)
    return plain


def _to_schemas(tools: Sequence[Tool] | None) -> list[dict[str, Any]] | None:
    if tools is None:
        return None
    if not isinstance(tools, (list, tuple)):
        refuse("tools", tools, "a list of JSON schemas")
    return [_to_schema(f"tools[{i}]", tool) for i, tool in enumerate(tools)]


def _to_schema(name: str, tool: Tool) -> dict[str, Any]:
    if callable(dump := getattr(tool, "model_dump", None)):
        tool = dump()
    if callable(tool):
        from transformers.utils.chat_template_utils import get_json_schema  # takes a second

        try:
            tool = get_json_schema(tool)
        except Exception as error:
            # It reads a docstring and types that a user wrote, and raises classes of its own.
            raise ValueError(f"{name}: no JSON schema can be made of it: {error}") from error
    if not isinstance(tool, Mapping):
        refuse(name, tool, "a dict: the JSON schema of a function")
    schema: dict[str, Any] = to_plain(name, tool)
    return schema


def _is_list_of(value: object, kind: type) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, kind) for item in value)


def _mark_end(turns: list[dict[str, Any]], template: str) -> str:
    """Put a tag behind the text of the last message; return the text.

    As transformers does (`render_jinja_template`): the tag says where the template wrote the end.
    """
    if "content" not in template:
        raise ValueError("continue_final_message=True needs a chat template that writes content")
    content = turns[-1]["content"]
    if isinstance(content, str):
        turns[-1]["content"] = content + _END_TAG
        return content
    if not content:
        raise ValueError("continue_final_message=True needs text in the last message")
    text = str(content[-1]["text"])
    content[-1]["text"] = text + _END_TAG
    return text


def _cut_behind(begun: str, text: str) -> str:
    """Return the text up to the end of the last message, whose beginning is given."""
    tag = _END_TAG.strip()
    if begun.strip() not in text or tag not in text:
        raise ValueError(
            "continue_final_message=True: the last message is not in the text that the chat "
            "template made; it may leave parts of it out. Take another template or message"
        )
    end = text.rindex(tag)
    # A template that keeps the spaces around a message kept the tag's.
    kept = text.startswith(_END_TAG, end)
    return text[:end] if kept else text[:end].rstrip()
