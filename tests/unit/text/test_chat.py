import pytest
from transformers import PreTrainedTokenizerFast

from folovllm.text.chat import render_chat, to_conversations

TEMPLATE = """\
{%- if tools %}tools: {{ tools | length }}
{% endif %}
{%- for m in messages %}
{%- if m.role == 'ipython' and not allow %}{{ raise_exception('no ' + m.role) }}{% endif -%}
<{{ m.role }}>{{ m.content }}</>
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""

USER = {"role": "user", "content": "Hi"}


@pytest.fixture
def tokenizer(tokenizers) -> PreTrainedTokenizerFast:
    # Its own object: the template is set on it.
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizers["words"].backend_tokenizer)
    made.chat_template = TEMPLATE
    return made


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


class TestRender:
    def test_asks_for_an_answer(self, tokenizer):
        assert render_chat(tokenizer, [USER]) == "<user>Hi</><assistant>"

    def test_or_does_not(self, tokenizer):
        assert render_chat(tokenizer, [USER], add_generation_prompt=False) == "<user>Hi</>"

    def test_goes_on_with_the_last_message(self, tokenizer):
        messages = [USER, {"role": "assistant", "content": "Well,"}]
        rendered = render_chat(
            tokenizer, messages, add_generation_prompt=False, continue_final_message=True
        )
        assert rendered == "<user>Hi</><assistant>Well,"

    def test_text_parts_are_joined(self, tokenizer):
        messages = [{"role": "user", "content": [*parts("a", "b"), "c"]}]
        assert render_chat(tokenizer, messages).startswith("<user>a\nb\nc</>")

    def test_an_answer_of_tool_calls_alone(self, tokenizer):
        call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
        assert "<assistant></>" in render_chat(tokenizer, [USER, call])

    def test_another_template_tools_and_names(self, tokenizer):
        assert render_chat(tokenizer, [USER], chat_template="{{ x }}") == ""
        tool = {"type": "function", "function": {"name": "f"}}
        assert render_chat(tokenizer, [USER], tools=[tool]).startswith("tools: 1\n")
        ipython = {"role": "ipython", "content": "1"}
        options = {"chat_template_kwargs": {"allow": True}}
        assert "<ipython>1</>" in render_chat(tokenizer, [ipython], **options)

    def test_leaves_the_messages_as_they_are(self, tokenizer):
        message = {"role": "user", "content": parts("a")}
        render_chat(tokenizer, [message])
        assert message == {"role": "user", "content": parts("a")}

    @pytest.mark.parametrize(
        ("messages", "message"),
        [
            ([], "messages must be a list of at least one message"),
            ("Hi", "messages must be a list of messages"),
            (["Hi"], r"messages\[0\] must be a dict .* got 'Hi'"),
            ([USER, {"content": "Hi"}], r"messages\[1\]\['role'\] must be one of .* got None"),
            (
                [{"role": "usr", "content": ""}],
                r"messages\[0\]\['role'\] must be .* mean user\?, got 'usr'",
            ),
            ([{"role": "user"}], r"messages\[0\]\['content'\] must be a string .* got None"),
            ([{"role": "assistant"}], r"messages\[0\]\['content'\] must be a string"),
            ([{"role": "user", "content": 5}], r"\['content'\] must be a string .* got 5"),
            (
                [{"role": "user", "content": [*parts("a"), {"type": "image_url"}]}],
                r"messages\[0\]\['content'\]\[1\] must be \{'type': 'text'.* text alone",
            ),
            (
                [{"role": "user", "content": [{"type": "text", "text": 1}]}],
                r"\['content'\]\[0\] must be",
            ),
            ([{"role": "ipython", "content": ""}], "template refuses the messages: no ipython"),
        ],
    )
    def test_refused(self, tokenizer, messages, message):
        with pytest.raises(ValueError, match=message):
            render_chat(tokenizer, messages)

    def test_a_template_with_a_mistake(self, tokenizer):
        with pytest.raises(ValueError, match="the chat template refuses"):
            render_chat(tokenizer, [USER], chat_template="{% if %}")

    def test_an_answer_cannot_be_begun_and_gone_on_with(self, tokenizer):
        with pytest.raises(ValueError, match="needs add_generation_prompt=False"):
            render_chat(tokenizer, [USER], continue_final_message=True)

    def test_needs_a_template(self, tokenizers):
        with pytest.raises(ValueError, match=r"has no chat template: .* Pass a chat_template"):
            render_chat(tokenizers["unigram"], [USER])

    def test_needs_a_tokenizer(self):
        with pytest.raises(ValueError, match="needs a tokenizer"):
            render_chat(None, [USER])


class TestConversations:
    def test_one_or_several(self):
        assert to_conversations([USER]) == [[USER]]
        assert to_conversations([[USER], [USER]]) == [[USER], [USER]]

    @pytest.mark.parametrize("messages", ["Hi", USER, None, [], 5])
    def test_neither(self, messages):
        with pytest.raises(ValueError, match="messages must be a list of messages"):
            to_conversations(messages)
