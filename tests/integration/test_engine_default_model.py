"""Real prompts on the default model: the tokens are those of transformers' greedy decoding."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from folovllm import LLM, SamplingParams

# One thread: two on a machine that is busy otherwise wait for each other most of the time.
pytestmark = pytest.mark.usefixtures("one_thread")

LONG = (
    "Chapter 1\n\nIt was a dark and stormy night; the rain fell in torrents, except at "
    "occasional intervals, when it was checked by a violent gust of wind which swept up the "
    "streets, rattling along the house-tops, and fiercely agitating the scanty flame of the "
    "lamps that struggled against the darkness."
)
TEXTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "Water boils at",
    "a",
    "I",
    "The quick brown fox jumps over the lazy dog. " * 7,
    "Photosynthesis is the process by which",
    "Q: What is the largest planet?\nA:",
    "Dear Sir or Madam,\n\n",
    "To be, or not to be, that is",
    "In 1969, Neil Armstrong",
    "Ingredients:\n- 200 g flour\n- 2 eggs\n- ",
    "The three laws of thermodynamics are:\n1.",
    "My favourite colour is",
    "She opened the door and saw",
    "Roses are red,\nViolets are blue,\n",
    "WARNING: DO NOT",
    'he said "I don\'t know", and then',
    "Le chat est assis sur",
    "Bonjour, je m'appelle",
    "La capital de España es",
    "Die Hauptstadt von Deutschland ist",
    "Il était une fois une princesse qui",
    "Il gatto dorme sul",
    "O rato roeu a roupa do rei de",
    "Москва — столица",
    "今天天气很好,我们去",
    "日本の首都は",
    "안녕하세요, 저는",
    "مرحبا، كيف",
    "שלום עולם",
    "Η Αθήνα είναι",
    "नमस्ते, आप कैसे",
    "สวัสดี",
    "I ❤️ pizza 🍕 and",
    "👨‍👩‍👧‍👦 is a family of",
    "🎉🎉🎉 Happy birthday",
    "def fibonacci(n):\n    ",
    "for (int i = 0; i < n; i++) {",
    "import numpy as np\n\ndef mean(x):\n",
    "SELECT name, age FROM users WHERE",
    "<html>\n<head>\n<title>",
    '{"name": "Ada", "born": 1815, "works":',
    "fn main() {\n    println!(",
    "#!/bin/bash\nset -e\n\n",
    "#include <stdio.h>\n\nint main(void) {\n",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "1, 2, 3, 4, 5,",
    "2 + 2 =",
    "3.14159265358979",
    "17 * 23 = 391. 18 * 24 =",
    "x^2 + 2x + 1 = 0, so x =",
    "2024-01-15T10:30:00Z",
    "1 1 2 3 5 8 13 21 34",
    "   \t  \n\n  ",
    "....................",
    "The the the the the the",
    "naïve café résumé",
    "http://www.example.com/index.html?q=",
    LONG,
]
CONVERSATIONS = [
    [{"role": "user", "content": "Hello! Who are you?"}],
    [{"role": "user", "content": "What is 12 times 12?"}],
    [
        {"role": "system", "content": "You answer in one word."},
        {"role": "user", "content": "What colour is the sky?"},
    ],
    [
        {"role": "user", "content": "Name a fruit."},
        {"role": "assistant", "content": "Apple."},
        {"role": "user", "content": "And another one?"},
    ],
    [{"role": "user", "content": "Écris un poème sur la mer. 🌊"}],
]
GREEDY = SamplingParams(temperature=0, max_tokens=24)


@pytest.fixture(scope="module")
def llm(demo_model):
    return LLM(str(demo_model), device="cpu", dtype="float32", cpu_kvcache_space=0.5)


@pytest.fixture(scope="module")
def model(demo_model):
    return AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)


@pytest.fixture(scope="module")
def outputs(llm):
    return llm.generate(TEXTS, GREEDY, use_tqdm=False)


def margins(model, out):
    """At each output position, what transformers' greatest logit is above the chosen one's.

    Zero everywhere is what greedy decoding means: one pass checks each token given the ones
    before it, so by induction all of them.
    """
    prompt, tokens = out.prompt_token_ids, out.outputs[0].token_ids
    with torch.inference_mode():
        ids = torch.tensor([prompt + tokens[:-1]])
        logits = model(ids, logits_to_keep=len(tokens)).logits[0]
    chosen = logits.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
    return (logits.amax(-1) - chosen).tolist()


def check_ends(out, eos_id):
    completion = out.outputs[0]
    assert eos_id not in completion.token_ids[:-1]
    ended = completion.token_ids[-1] == eos_id
    assert completion.finish_reason == ("stop" if ended else "length")
    assert ended or len(completion.token_ids) == GREEDY.max_tokens


def test_sixty_prompts(llm, model, outputs):
    assert len(outputs) == len(set(TEXTS)) >= 60
    eos_id = llm.get_tokenizer().eos_token_id
    for text, out in zip(TEXTS, outputs, strict=True):
        assert out.prompt == text
        assert set(margins(model, out)) == {0.0}, text
        check_ends(out, eos_id)
    tokens = {token for out in outputs for token in out.outputs[0].token_ids}
    assert len(tokens) > 300


def test_conversations(llm, model):
    outputs = llm.chat(CONVERSATIONS, GREEDY, use_tqdm=False)
    tokenizer = llm.get_tokenizer()
    for conversation, out in zip(CONVERSATIONS, outputs, strict=True):
        expected = tokenizer.apply_chat_template(conversation, add_generation_prompt=True)
        assert out.prompt_token_ids == expected["input_ids"]
        assert set(margins(model, out)) == {0.0}
        check_ends(out, tokenizer.eos_token_id)


def test_generate_itself(model, outputs):
    out = outputs[37]
    ids = torch.tensor([out.prompt_token_ids])
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24
    )
    assert out.outputs[0].token_ids == expected[0, ids.shape[1] :].tolist()


def test_texts_are_the_tokenizers(llm, outputs):
    tokenizer = llm.get_tokenizer()
    for out in outputs:
        decoded = tokenizer.decode(out.outputs[0].token_ids, skip_special_tokens=True)
        # A character whose last bytes were not generated is no text.
        assert out.outputs[0].text == decoded.removesuffix("\ufffd")


def test_alone_with_a_warm_cache(llm, outputs):
    out = outputs[5]
    [again] = llm.generate(out.prompt, GREEDY, use_tqdm=False)
    assert again.outputs == out.outputs
    assert again.num_cached_tokens == (len(out.prompt_token_ids) - 1) // 16 * 16 > 0


def test_chunked_and_preempted(demo_model, outputs):
    chosen = [outputs[5], outputs[10], outputs[36], outputs[-1]]
    small = LLM(
        str(demo_model),
        device="cpu",
        dtype="float32",
        num_gpu_blocks_override=12,
        max_num_batched_tokens=33,
        max_model_len=128,
    )
    again = small.generate([out.prompt for out in chosen], GREEDY, use_tqdm=False)
    assert [out.outputs for out in again] == [out.outputs for out in chosen]
    assert small.stats()["preemptions"] > 0


def test_streamed(llm, outputs):
    chosen = outputs[25:35]
    texts = [""] * len(chosen)
    tokens = [[] for _ in chosen]
    for piece in llm.stream([out.prompt for out in chosen], GREEDY):
        place = int(piece.request_id.partition("-")[0])
        texts[place] += piece.outputs[0].text
        tokens[place] += piece.outputs[0].token_ids
    assert texts == [out.outputs[0].text for out in chosen]
    assert tokens == [out.outputs[0].token_ids for out in chosen]
