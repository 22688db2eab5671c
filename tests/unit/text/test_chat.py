import pytest
from transformers import PreTrainedTokenizerFast

from folovllm.text.chat import ChatRenderer

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


@pytest.fixture(scope="module")
def renderer():
    """Its process serves all tests: the tokenizer is put in by `render_chat`."""
    return ChatRenderer(None)


@pytest.fixture
def render_chat(renderer):
    def render(tokenizer, messages, **options):
        renderer._tokenizer = tokenizer
        return renderer.render(messages, **options)

    return render


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


class TestRender:
    def test_asks_for_an_answer(self, render_chat, tokenizer):
        assert render_chat(tokenizer, [USER]) == "<user>Hi</><assistant>"

    def test_or_does_not(self, render_chat, tokenizer):
        assert render_chat(tokenizer, [USER], add_generation_prompt=False) == "<user>Hi</>"

    def test_goes_on_with_the_last_message(self, render_chat, tokenizer):
        messages = [USER, {"role": "assistant", "content": "Well,"}]
        rendered = render_chat(
            tokenizer, messages, add_generation_prompt=False, continue_final_message=True
        )
        assert rendered == "<user>Hi</><assistant>Well,"

    def test_text_parts_are_joined(self, render_chat, tokenizer):
        messages = [{"role": "user", "content": [*parts("a", "b"), "c"]}]
        assert render_chat(tokenizer, messages).startswith("<user>a\nb\nc</>")

    def test_an_answer_of_tool_calls_alone(self, render_chat, tokenizer):
        call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
        assert "<assistant></>" in render_chat(tokenizer, [USER, call])

    def test_another_template_tools_and_names(self, render_chat, tokenizer):
        assert render_chat(tokenizer, [USER], chat_template="{{ x }}") == ""
        tool = {"type": "function", "function": {"name": "f"}}
        assert render_chat(tokenizer, [USER], tools=[tool]).startswith("tools: 1\n")
        ipython = {"role": "ipython", "content": "1"}
        options = {"chat_template_kwargs": {"allow": True}}
        assert "<ipython>1</>" in render_chat(tokenizer, [ipython], **options)

    def test_leaves_the_messages_as_they_are(self, render_chat, tokenizer):
        message = {"role": "user", "content": parts("a")}
        render_chat(tokenizer, [message])
        assert message == {"role": "user", "content": parts("a")}

    @pytest.mark.parametrize(
        ("messages", "message"),
        [
            ([], "messages must be a list of at least one message"),
            ("Hi", "messages must be a list of messages"),
            (["Hi"], r"messages\[0\] must be a dict .* got 'Hi'"),
            ([USER, {"content": "Hi"}], r"messages\[1\]\['role'\] must be a string .* got None"),
            ([{"role": "", "content": ""}], r"messages\[0\]\['role'\] must be a string"),
            ([{"role": 1, "content": ""}], r"messages\[0\]\['role'\] must be a string .* got 1"),
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
    def test_refused(self, render_chat, tokenizer, messages, message):
        with pytest.raises(ValueError, match=message):
            render_chat(tokenizer, messages)

    def test_a_template_with_a_mistake(self, render_chat, tokenizer):
        with pytest.raises(ValueError, match=r"no valid Jinja at line 2: Expected .*; correct"):
            render_chat(tokenizer, [USER], chat_template="\n{% if %}")

    def test_an_answer_cannot_be_begun_and_gone_on_with(self, render_chat, tokenizer):
        with pytest.raises(ValueError, match="needs add_generation_prompt=False"):
            render_chat(tokenizer, [USER], continue_final_message=True)

    def test_needs_a_template(self, render_chat, tokenizers):
        with pytest.raises(ValueError, match=r"has no chat template: .* Pass a chat_template"):
            render_chat(tokenizers["unigram"], [USER])

    def test_needs_a_tokenizer(self, render_chat):
        with pytest.raises(ValueError, match="needs a tokenizer"):
            render_chat(None, [USER])

    def test_any_role_is_for_the_template_to_take(self, render_chat, tokenizer):
        messages = [{"role": role, "content": "a"} for role in ("critic", "tool", "observation")]
        rendered = render_chat(tokenizer, messages, add_generation_prompt=False)
        assert rendered == "<critic>a</><tool>a</><observation>a</>"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"chat_template": 5}, "chat_template must be a Jinja template"),
            ({"chat_template_content_format": "text"}, "must be one of 'auto', 'string', 'openai'"),
            ({"tools": {}}, "tools must be a list of JSON schemas"),
            ({"tools": "f"}, "tools must be a list of JSON schemas"),
            ({"tools": [1]}, r"tools\[0\] must be a dict"),
            ({"tools": [lambda x: x]}, r"tools\[0\]: no JSON schema can be made of it"),
            ({"chat_template_kwargs": []}, "chat_template_kwargs must be a dict"),
            ({"chat_template_kwargs": {1: 2}}, "chat_template_kwargs must be a dict"),
            ({"chat_template_kwargs": {"messages": []}}, "must not have 'messages'"),
            ({"chat_template_kwargs": {"tokenize": True}}, "must not have 'tokenize'"),
            ({"chat_template_kwargs": {"documents": ["a"]}}, r"\['documents'\] must be a list"),
        ],
    )
    def test_wrong_options(self, render_chat, tokenizer, options, message):
        with pytest.raises(ValueError, match=message):
            render_chat(tokenizer, [USER], **options)

    def test_a_function_is_made_a_schema(self, render_chat, tokenizer):
        def add(a: int) -> int:
            """Add one.

            Args:
                a: what to add to.
            """
            return a + 1

        template = "{{ tools[0].function.name }}"
        assert render_chat(tokenizer, [USER], tools=[add], chat_template=template) == "add"

    @pytest.mark.parametrize("form", ["auto", "openai", "string"])
    def test_the_form_of_content_can_be_chosen(self, render_chat, tokenizer, form):
        template = "{% for m in messages %}{{ m.content is string }}{% endfor %}"
        rendered = render_chat(
            tokenizer, [USER], chat_template=template, chat_template_content_format=form
        )
        assert rendered == str(form != "openai")

    def test_a_message_that_holds_itself(self, render_chat, tokenizer):
        message = {"role": "user", "content": "a"}
        message["me"] = message
        with pytest.raises(
            ValueError, match=r"messages\[0\] is nested too deeply, or holds itself"
        ):
            render_chat(tokenizer, [message])
        deep = []
        for _ in range(100_000):
            deep = [deep]
        with pytest.raises(ValueError, match="nested too deeply"):
            render_chat(tokenizer, [USER], chat_template_kwargs={"x": deep})

    def test_more_than_crosses_a_pipe(self, render_chat, tokenizer):
        message = {"role": "user", "content": "a" * 33 * 2**20}
        with pytest.raises(ValueError, match="are larger than 32 MB"):
            render_chat(tokenizer, [message])
        half = {"role": "user", "content": "é" * 2**22}
        assert len(render_chat(tokenizer, [half])) > 2**22

    def test_text_of_every_kind_comes_back_as_it_is(self, render_chat, tokenizer):
        text = "a\x00\ud800\u2028🙂\r\n"
        assert f"<user>{text}</>" in render_chat(tokenizer, [{"role": "user", "content": text}])
