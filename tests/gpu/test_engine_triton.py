"""The engine on a device: the Triton kernels, SDPA and transformers agree."""

import gc
import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from folovllm import LLM, SamplingParams
from tests.integration.conftest import write_tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

FAMILIES = ["llama", "qwen3", "gemma2", "gpt_oss", "deepseek_v3"]
BACKENDS = ("triton", "sdpa")
LENGTHS = (1, 5, 17, 30, 44)


def make_prompts():
    rng = random.Random(0)
    return [[rng.randrange(3, 96) for _ in range(length)] for length in LENGTHS]


def generate(folder, dtype, backend, params):
    llm = LLM(
        str(folder),
        device="cuda",
        dtype=dtype,
        attention_backend=backend,
        gpu_memory_utilization=0.3,
        num_gpu_blocks_override=256,
        max_num_batched_tokens=24,
    )
    assert llm.llm_engine.setup.attention_backend == backend
    outputs = llm.generate(make_prompts(), params, use_tqdm=False)
    del llm
    gc.collect()
    torch.cuda.empty_cache()
    return outputs


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_in_float32(tmp_path, family):
    folder = write_tiny(tmp_path, family)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).cuda()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    expected = []
    for prompt in make_prompts():
        ids = torch.tensor([prompt], device="cuda")
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16
        )
        expected.append(out[0, len(prompt) :].tolist())
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    for backend in BACKENDS:
        outputs = generate(folder, "float32", backend, params)
        assert [out.outputs[0].token_ids for out in outputs] == expected


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_probabilities_in_bfloat16(tmp_path, family):
    """Tokens may differ where two are as likely; what is said of a prompt may not."""
    folder = write_tiny(
        tmp_path, family, torch.bfloat16, hidden_size=256, head_dim=64, num_hidden_layers=2
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).cuda()
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1)
    results = {name: generate(folder, "bfloat16", name, params) for name in BACKENDS}
    for i, prompt in enumerate(make_prompts()):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt], device="cuda")).logits[0].float()
        for outputs in results.values():
            rows = outputs[i].prompt_logprobs[1:]
            if rows:
                ours = torch.tensor([[row[t].logprob for t in range(len(row))] for row in rows])
                expected = logits.log_softmax(-1)[:-1].cpu().exp()
                torch.testing.assert_close(ours.exp(), expected, atol=0.05, rtol=0)
