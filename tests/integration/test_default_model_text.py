"""The default model's own tokenizer, both ways."""

from pathlib import Path

import pytest
from hypothesis import example, given, strategies as st
from transformers import AutoTokenizer

from folovllm.sampling_params import SamplingParams
from folovllm.text.chat import render_chat
from folovllm.text.detokenizer import UNFINISHED, Detokenizer, TokenStream
from folovllm.text.input_processor import InputProcessor
from folovllm.text.token_text import TokenText


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
    rendered = render_chat(tokenizer, messages)
    assert rendered.endswith("Bonjour!<|im_end|>\n<|im_start|>assistant\n")
    processor = InputProcessor(tokenizer, max_model_len=64, vocab_size=49152)
    request = processor.process("r", rendered, SamplingParams(), add_special_tokens=False)
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert request.prompt_token_ids == expected
