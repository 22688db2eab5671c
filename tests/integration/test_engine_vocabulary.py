"""The engine chooses among the tokens that the checkpoint has, and adds none."""

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from folovllm import LLM, SamplingParams

pytestmark = pytest.mark.usefixtures("one_thread")

GREEDY = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
PROMPT = [5, 6, 7]


@pytest.fixture
def far_below_zero(save_tiny):
    """A model whose logits are all far below zero, as GPT-2's are: a row of zeros would win."""
    folder = save_tiny("gpt2", vocab_size=10, bos_token_id=None, eos_token_id=None)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.transformer.ln_f.bias.data.fill_(1.0)
    model.transformer.wte.weight.data.sub_(2.0)
    model.save_pretrained(folder)
    return folder


def greedy_of_transformers(folder):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([PROMPT])
    out = model.generate(ids, do_sample=False, max_new_tokens=5, pad_token_id=0)
    return out[0, 3:].tolist()


def test_no_row_is_added_for_padding(far_below_zero, save_tokenizer):
    save_tokenizer(far_below_zero, eos=None)
    llm = LLM(str(far_below_zero), device="cpu")
    assert llm.llm_engine.setup.vocab_size == 10
    assert len(llm.get_tokenizer()) == 10
    out = llm.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs[0]
    assert out.token_ids == greedy_of_transformers(far_below_zero)
    assert out.text


def test_sampling_stays_within_the_checkpoint(far_below_zero, save_tokenizer):
    save_tokenizer(far_below_zero, eos=None)
    llm = LLM(str(far_below_zero), device="cpu")
    hot = SamplingParams(temperature=5, max_tokens=50, seed=0, n=4, logprobs=-1)
    [output] = llm.generate(PROMPT, hot, use_tqdm=False)
    for sample in output.outputs:
        assert max(sample.token_ids) < 10
        assert all(len(row) == 10 for row in sample.logprobs)


def test_a_model_with_more_rows_than_the_tokenizer_has_tokens(save_tiny):
    folder = save_tiny(vocab_size=96)  # and the tokenizer has ten
    llm = LLM(str(folder), device="cpu", dtype="float32")
    out = llm.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs[0]
    assert out.token_ids == greedy_of_transformers(folder)
    assert llm.llm_engine.setup.vocab_size == 96


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows(save_tiny):
    folder = save_tiny(vocab_size=10)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken("beyond")])
    tokenizer.save_pretrained(folder)
    llm = LLM(str(folder), device="cpu", dtype="float32")
    with pytest.raises(ValueError, match="token ids below 10"):
        llm.generate("the cat beyond", GREEDY, use_tqdm=False)
    assert llm.generate("the cat", GREEDY, use_tqdm=False)[0].outputs[0].token_ids
