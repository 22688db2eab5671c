"""Scripts written for vLLM's offline interface run with only their import changed."""

import runpy

import pytest

from folovllm import LLM

pytestmark = pytest.mark.usefixtures("one_thread")

BASIC = """
from vllm import LLM, SamplingParams

prompts = [
    "Hello, my name is",
    "The president of the United States is",
    "The capital of France is",
    "The future of AI is",
]
sampling_params = SamplingParams(temperature=0.8, top_p=0.95)


def main():
    llm = LLM(model="MODEL")
    outputs = llm.generate(prompts, sampling_params)
    print("\\nGenerated Outputs:\\n" + "-" * 60)
    for output in outputs:
        prompt = output.prompt
        generated_text = output.outputs[0].text
        print(f"Prompt:    {prompt!r}")
        print(f"Output:    {generated_text!r}")
        print("-" * 60)


if __name__ == "__main__":
    main()
"""

CHAT = """
from vllm import LLM, SamplingParams

llm = LLM(
    model="MODEL",
    tokenizer="MODEL",
    tokenizer_mode="auto",
    tensor_parallel_size=1,
    scheduling_policy="fcfs",
    pipeline_parallel_size=1,
    enforce_eager=True,
    gpu_memory_utilization=0.5,
    max_model_len=512,
    max_num_seqs=16,
    max_num_batched_tokens=512,
    block_size=16,
    swap_space=4,
    dtype="float32",
    quantization=None,
    load_format="auto",
    kv_cache_dtype="auto",
    seed=0,
    trust_remote_code=False,
    enable_prefix_caching=True,
    enable_chunked_prefill=True,
    disable_log_stats=True,
)
sampling_params = llm.get_default_sampling_params()
sampling_params.max_tokens = 6
sampling_params.temperature = 0.5
conversation = [
    {"role": "system", "content": "You are a helpful assistant"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello! How can I assist you today?"},
    {"role": "user", "content": "Write an essay about the importance of higher education."},
]
outputs = llm.chat(conversation, sampling_params, use_tqdm=False)
outputs = llm.chat([conversation for _ in range(3)], sampling_params, use_tqdm=True)
for output in outputs:
    print(f"Prompt: {output.prompt!r}")
    print(f"Generated text: {output.outputs[0].text!r}")
"""

TOKENS = """
from vllm import LLM, SamplingParams

llm = LLM(model="MODEL", max_model_len=128)
tokenizer = llm.get_tokenizer()
ids = tokenizer.encode("The capital of France is")
greedy = SamplingParams(temperature=0.0, max_tokens=4, logprobs=2, prompt_logprobs=1)
sampled = SamplingParams(n=2, seed=3, max_tokens=5, stop=["."], ignore_eos=False)
outputs = llm.generate(
    [{"prompt_token_ids": ids}, {"prompt": "The capital of France is"}], [greedy, sampled]
)
first, second = outputs
assert first.prompt is None and first.prompt_token_ids == ids == second.prompt_token_ids
assert len(first.prompt_logprobs) == len(ids) and first.prompt_logprobs[0] is None
for token_id, logprobs in zip(first.outputs[0].token_ids, first.outputs[0].logprobs):
    assert logprobs[token_id].rank == 1
    assert logprobs[token_id].decoded_token == tokenizer.decode([token_id])
assert [completion.index for completion in second.outputs] == [0, 1]
assert all(c.finish_reason in ("stop", "length") for c in second.outputs)
assert second.outputs[0].cumulative_logprob is None and second.finished
print(first.outputs[0].text)
"""

ENGINE = """
from vllm import LLMEngine, SamplingParams, EngineConfig, RequestOutput

test_prompts = [
    ("A robot may not injure a human being", SamplingParams(temperature=0.0, max_tokens=5)),
    ("To be or not to be,", SamplingParams(temperature=0.8, top_k=5, presence_penalty=0.2)),
    ("What is the meaning of life?", SamplingParams(n=2, temperature=0.8, top_p=0.95)),
]
engine = LLMEngine(EngineConfig.from_options(model="MODEL", max_model_len=128))
request_id = 0
while test_prompts or engine.has_unfinished_requests():
    if test_prompts:
        prompt, sampling_params = test_prompts.pop(0)
        engine.add_request(str(request_id), prompt, sampling_params)
        request_id += 1
    request_outputs: list[RequestOutput] = engine.step()
    for request_output in request_outputs:
        if request_output.finished:
            print("Finished", request_output.request_id, len(request_output.outputs))
"""


@pytest.fixture
def run(demo_model, tmp_path, capsys):
    """A function that runs a script and returns what it printed."""

    def run(text):
        script = tmp_path / "script.py"
        text = text.replace("from vllm import", "from folovllm import", 1)
        script.write_text(text.replace("MODEL", demo_model.as_posix()))
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_basic_example(run):
    printed = run(BASIC)
    assert printed.count("Prompt:    '") == printed.count("Output:    ") == 4
    assert "Output:    ''" not in printed


def test_the_chat_example(run):
    printed = run(CHAT)
    assert printed.count("Generated text: ") == 3
    assert "You are a helpful assistant<|im_end|>" in printed


def test_token_ids_and_logprobs(run):
    assert "Paris" in run(TOKENS)


def test_the_engine_example(run):
    lines = sorted(run(ENGINE).splitlines())
    assert lines == ["Finished 0 1", "Finished 1 1", "Finished 2 2"]


def test_what_means_nothing_here_is_refused_when_it_asks_for_something(demo_model):
    for name, value in {"quantization": "awq", "kv_cache_dtype": "fp8"}.items():
        with pytest.raises(ValueError, match=f"{name}: got '{value}'"):
            LLM(str(demo_model), **{name: value})
