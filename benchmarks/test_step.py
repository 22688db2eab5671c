"""What a step costs apart from the model: scheduling, laying out, sampling, making outputs.

The engine is a real one, on a model so small that its weights do not matter, and whose forward
is replaced by one that does nothing.
"""

from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from folovllm import EngineConfig, LLMEngine, RequestOutputKind, SamplingParams

NUM_SEQS = 64
PROMPT_LEN = 128
STEPS = 300

PARAMS = {
    "greedy, final output": SamplingParams(
        temperature=0, output_kind=RequestOutputKind.FINAL_ONLY, max_tokens=None, ignore_eos=True
    ),
    "sampled, streamed": SamplingParams(
        temperature=0.8,
        top_p=0.95,
        seed=1,
        output_kind=RequestOutputKind.DELTA,
        max_tokens=None,
        ignore_eos=True,
    ),
}


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one layer and 256 tokens, each of them a word."""
    folder = tmp_path_factory.mktemp("model")
    config = AutoConfig.for_model(
        "llama",
        vocab_size=256,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=4096,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = {f"w{i}": i for i in range(256)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w1").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", PARAMS)
def test_a_step_without_the_model(benchmark: BenchmarkFixture, tiny_model: Path, kind: str) -> None:
    """64 running sequences, a token each."""
    options = EngineConfig.from_options(
        model=str(tiny_model), max_num_seqs=NUM_SEQS, cpu_kvcache_space=0.1
    )
    engine = LLMEngine(options, "cpu")
    for i in range(NUM_SEQS):
        prompt = [2 + (i + j) % 250 for j in range(PROMPT_LEN)]
        engine.add_request(str(i), prompt, PARAMS[kind])
    logits = torch.randn(NUM_SEQS, 256)
    engine.executor.runner.model.forward = lambda *_: logits[: len(_[3])]  # type: ignore[method-assign]
    while engine.scheduler.num_running < NUM_SEQS:
        engine.step()
    engine.step()
    benchmark.extra_info["sequences"] = NUM_SEQS
    benchmark.pedantic(engine.step, rounds=STEPS, warmup_rounds=20)
    assert engine.scheduler.num_running == NUM_SEQS
