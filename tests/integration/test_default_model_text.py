"""The default model's own tokenizer, both ways."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings, strategies as st
from transformers import AutoTokenizer

from folovllm.sampling_params import SamplingParams
from folovllm.text.bad_words import BadWordCompiler
from folovllm.text.chat import ChatRenderer
from folovllm.text.detokenizer import UNFINISHED, Detokenizer, TokenStream
from folovllm.text.input_processor import InputProcessor
from folovllm.text.token_text import TokenText
from tests.unit.text.spelling import stands_alone, wander


@pytest.fixture(scope="module")
def tokenizer(demo_model: Path):
    return AutoTokenizer.from_pretrained(demo_model)


@pytest.fixture(scope="module")
def text(tokenizer):
    return TokenText(tokenizer)


@given(prompt=st.text(), output=st.text())
@example("The family:", " 👨‍👩‍👧‍👦 naïve e\u0301 今天天气很好 🇫🇷")
def test_pieces_join_to_the_text(tokenizer, text, prompt, output):
    prompt_ids, ids = tokenizer.encode(prompt), tokenizer.encode(output)
    # The vocabulary lacks some bytes, and encoding leaves them out.
    decoded = tokenizer.decode(ids)
    detokenizer = Detokenizer(text, SamplingParams(skip_special_tokens=False), prompt_ids)
    pieces = []
    for token_id in ids:
        assert detokenizer.push(token_id) is None
        pieces.append(detokenizer.take(finished=False))
        assert UNFINISHED in decoded or UNFINISHED not in pieces[-1]
    assert "".join(pieces) == decoded.removesuffix(UNFINISHED)


@given(st.lists(st.integers(0, 49151)))
def test_pieces_of_any_tokens(tokenizer, text, ids):
    stream = TokenStream(text)
    joined = "".join(map(stream.push, ids))
    expected = tokenizer.decode(ids, skip_special_tokens=True)
    assert joined == expected.removesuffix(UNFINISHED)
    assert stream.unfinished() == expected.endswith(UNFINISHED)


def test_a_conversation(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Bonjour!"},
    ]
    rendered = ChatRenderer(tokenizer).render(messages)
    assert rendered.endswith("Bonjour!<|im_end|>\n<|im_start|>assistant\n")
    processor = InputProcessor(tokenizer, max_model_len=64, vocab_size=49152)
    request = processor.process("r", rendered, SamplingParams(), add_special_tokens=False)
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert request.prompt_token_ids == expected


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return ChatRenderer(tokenizer)


@pytest.mark.parametrize("form", ["text", "parts"])
def test_a_template_that_iterates_over_parts_gets_the_text(renderer, form):
    template = (
        "{% for m in messages %}[{{ m.role }}]{% for part in m.content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
    )
    text = "how do I bake bread"
    content = text if form == "text" else [{"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    assert renderer.render(messages, chat_template=template) == f"[user]{text}"
    own = renderer.render(messages)
    assert own.endswith(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{{ c.function.arguments | tojson }}", '{"city": "Rome"}'),
        (
            "{% for k, v in c.function.arguments|items %}<{{ k }}>{{ v }}{% endfor %}",
            "<city>Rome",
        ),
    ],
)
def test_arguments_of_earlier_tool_calls_are_an_object(renderer, written, expected):
    head = "{% for m in messages if m.role == 'assistant' %}{% for c in m.tool_calls %}"
    call = {"id": "1", "function": {"name": "get", "arguments": '{"city": "Rome"}'}}
    messages = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "...", "tool_calls": [call]},
    ]
    template = f"{head}{written}{{% endfor %}}{{% endfor %}}"
    assert renderer.render(messages, chat_template=template) == expected


@pytest.fixture(scope="module")
def compiler(tokenizer):
    return BadWordCompiler(tokenizer, 49152)


@settings(deadline=None)
@pytest.mark.parametrize(
    "word",
    ["beautiful", " beautiful", "Proud", "don't", "New York", "今天", "é", "3", "\n\n"],
)
@given(data=st.data())
def test_bad_words_are_never_in_the_text(tokenizer, text, compiler, word, data):
    spellings = [word, f" {word}", f"{word}ly", *word, f" {word[:1]}", word[:2], word[2:]]
    likely = {i for spelling in spellings for i in tokenizer.encode(spelling)}
    tokens = st.sampled_from(sorted(likely)) | st.integers(0, 49151)
    ids = wander(compiler, word, data.draw(st.lists(tokens, max_size=20)), 49152)
    detokenizer = Detokenizer(text, SamplingParams(), [])
    for token in ids:
        detokenizer.push(token)
    assert not stands_alone(word, detokenizer.take(finished=True))


@pytest.mark.parametrize(
    "options",
    [
        {"add_generation_prompt": True},
        {"add_generation_prompt": False},
        {"add_generation_prompt": False, "continue_final_message": True},
    ],
)
def test_its_template_renders_as_with_transformers(renderer, tokenizer, options):
    messages = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Yes, "}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    assert renderer.render(messages, **options) == expected
