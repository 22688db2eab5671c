"""Conversations render as with transformers' `apply_chat_template`."""

import pytest
from transformers import PreTrainedTokenizerFast

from folovllm.text.chat import ChatRenderer
from folovllm.text.messages import normalise_messages
from tests.unit.text.templates import HONEST

TOOL = {
    "type": "function",
    "function": {
        "name": "get",
        "description": "Get the weather in a <city> & more: é",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {"id": "abcdef123", "type": "function"}
SYSTEM = {"role": "system", "content": " Be brief. "}
USER = {"role": "user", "content": 'Weather in "Rome"? é 🙂\n'}
ANSWER = {"role": "assistant", "content": " It is\n<b>warm</b>  "}
CONVERSATIONS = {
    "a question": [USER],
    "with a system message": [SYSTEM, USER],
    "an answer": [SYSTEM, USER, ANSWER],
    "another question": [USER, ANSWER, USER],
    "a tool": [
        USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{**CALL, "function": {"name": "get", "arguments": '{"city": "Rôme"}'}}],
        },
        {"role": "tool", "tool_call_id": "abcdef123", "content": '[20, "C"]'},
        {**ANSWER, "reasoning": "hm"},
        USER,
    ],
}
OPTIONS = {
    "plain": {},
    "no answer begun": {"add_generation_prompt": False},
    "gone on with": {"add_generation_prompt": False, "continue_final_message": True},
    "tools": {"tools": [TOOL]},
    "documents": {"documents": [{"title": "a", "text": "b"}]},
    "names": {"enable_thinking": False, "date_string": "today", "names": ("a", {1: "b"})},
}


@pytest.fixture(scope="module")
def renderer(tokenizers):
    backend = tokenizers["words"].backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    return ChatRenderer(tokenizer)


def outcome(function, *arguments, **options):
    """The text, or the template's refusal."""
    try:
        return function(*arguments, **options)
    except Exception as error:  # noqa: BLE001 - whatever a template raises
        text = str(error).removeprefix("the chat template refuses the messages: ")
        return "refused", text if "chat template" not in text else "otherwise"


@pytest.mark.parametrize("form", ["text", "parts"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", HONEST)
def test_the_same_text(renderer, template, conversation, options, form):
    source, messages = HONEST[template], CONVERSATIONS[conversation]
    if form == "parts":
        messages = [{**m, "content": m["content"] and [m["content"]]} for m in messages]
    chosen = {"add_generation_prompt": True, **OPTIONS[options]}
    takes_parts = template in ("gemma_3", "qwen_3_vl")
    theirs = outcome(
        renderer._tokenizer.apply_chat_template,
        normalise_messages(messages, "openai" if takes_parts else "string"),
        chat_template=source,
        tokenize=False,
        **chosen,
    )
    own = ("tools", "add_generation_prompt", "continue_final_message")
    ours = outcome(
        renderer.render,
        messages,
        chat_template=source,
        chat_template_kwargs={name: chosen[name] for name in chosen if name not in own},
        **{name: chosen[name] for name in chosen if name in own},
    )
    assert ours == theirs


def test_enough_of_them_render(renderer):
    """The comparison would hold as well where every template refused everything."""
    rendered = [
        outcome(renderer.render, messages, chat_template=template)
        for template in HONEST.values()
        for messages in CONVERSATIONS.values()
    ]
    assert sum(isinstance(text, str) for text in rendered) > 0.7 * len(rendered)
