"""The engine on the Triton kernels on a CPU, in the process that `test_triton.py` starts."""

import random

import pytest

from folovllm import SamplingParams

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "deepseek_v3"])
def test_the_same_greedy_tokens_as_by_sdpa(family, make_llm):
    """Of a grouped model, one with a soft cap, one with sinks, and one with two head sizes."""
    rng = random.Random(0)
    prompts = [[rng.randrange(3, 96) for _ in range(length)] for length in (1, 9, 30)]
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    tokens = {}
    for backend in ("sdpa", "triton"):
        # A budget that cuts prompts in pieces, beside others that decode.
        options = {"max_num_batched_tokens": 24, "num_gpu_blocks_override": 40}
        llm = make_llm(family, attention_backend=backend, **options)
        assert llm.llm_engine.setup.attention_backend == backend
        outputs = llm.generate(prompts, params, use_tqdm=False)
        tokens[backend] = [out.outputs[0].token_ids for out in outputs]
    assert tokens["triton"] == tokens["sdpa"]
    assert len({token for ids in tokens["sdpa"] for token in ids}) > 2
