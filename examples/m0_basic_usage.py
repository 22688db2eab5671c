"""Milestone 0 in one file: configuration, sampling parameters, requests, loading, generating.

Runs on the default model, or on the one that `FOLOVLLM_MODEL` names:

    python examples/m0_basic_usage.py
    FOLOVLLM_MODEL=Qwen/Qwen3-0.6B python examples/m0_basic_usage.py
"""

import torch

from folovllm import (
    EngineConfig,
    ModelConfig,
    ModelLoader,
    Request,
    SamplingParams,
    SequenceStatus,
    ensure_demo_model,
    generate_request_id,
    set_random_seed,
)
from folovllm.utils.logging import set_up_logging

QUESTION = "What is the capital of France?"


def main() -> None:
    """Go through the parts in the order in which an engine uses them."""
    set_up_logging("INFO")  # what the loader does; a library stays silent by itself

    # 1. Configuration: arguments, then FOLOVLLM_ variables, then .env, then defaults.
    named = "model" in ModelConfig.find_in_environment()
    model_config = ModelConfig() if named else ModelConfig(model=str(ensure_demo_model()))
    config = EngineConfig(model_config=model_config)
    print(f"model {config.model_config.model}, dtype {config.model_config.dtype}")
    print(f"blocks of {config.cache_config.block_size} tokens, ", end="")
    print(f"at most {config.scheduler_config.max_num_seqs} sequences in a step")

    # 2. Sampling parameters are checked when they are made.
    params = SamplingParams(temperature=0.7, top_k=40, top_p=0.9, max_tokens=32, seed=0)
    print(params)
    try:
        SamplingParams(temperature=-1)
    except ValueError as error:
        print(f"refused: {error}")

    # 3. The model and the tokenizer.
    loader = ModelLoader(config.model_config)
    llm, tokenizer = loader.load_model_and_tokenizer()
    print(f"{llm.num_parameters():,} parameters in {llm.dtype} on {llm.device}, ", end="")
    print(f"up to {config.model_config.max_model_len} tokens")

    # 4. A request and its sequence: what an engine schedules. The sequence's status is written;
    #    the request's follows from it.
    prompt = as_prompt(tokenizer, QUESTION)
    request = Request(generate_request_id(), QUESTION, prompt, params)
    (sequence,) = request.get_seqs()
    print(f"{sequence.get_prompt_len()} prompt tokens in sequence {sequence.seq_id}")

    # 5. Generate: by hand, with transformers. `LLM` does it with the engine of milestone 1.
    set_random_seed(params.seed or 0)
    sequence.status = SequenceStatus.RUNNING
    for token_id in generate(llm, prompt, params):
        sequence.add_token_id(token_id)
    capped = sequence.get_output_len() == params.max_tokens
    sequence.status = (
        SequenceStatus.FINISHED_LENGTH_CAPPED if capped else SequenceStatus.FINISHED_STOPPED
    )
    answer = tokenizer.decode(sequence.data.output_token_ids, skip_special_tokens=True)
    print(f"> {QUESTION}\n{answer.strip()}")
    print(f"{sequence.get_output_len()} tokens generated, {request.status.value}")


def as_prompt(tokenizer, question: str) -> list[int]:
    """The question as token ids, in the chat template if the model has one."""
    if tokenizer.chat_template is None:
        return tokenizer(question)["input_ids"]
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def generate(llm, prompt: list[int], params: SamplingParams) -> list[int]:
    """The output's token ids, by transformers' `generate`."""
    ids = torch.tensor([prompt], device=llm.device)
    with torch.inference_mode():
        output = llm.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            max_new_tokens=params.max_tokens,
        )
    return output[0, len(prompt) :].tolist()


if __name__ == "__main__":
    main()
