"""Milestone 1: offline inference. Prompts go in, text comes out; and the loop behind it, by hand.

Runs on the default model, or on the one that `FOLOVLLM_MODEL` names:

    python examples/m1_basic_inference.py
"""

from folovllm import LLM, ModelConfig, Request, SamplingParams, ensure_demo_model


def main() -> None:
    """From the front door inwards."""
    named = "model" in ModelConfig.find_in_environment()
    llm = LLM(None if named else str(ensure_demo_model()))
    generate(llm)
    sample(llm)
    converse(llm)
    step_by_hand(llm)


def generate(llm: LLM) -> None:
    """Several prompts at once, each with parameters of its own."""
    print("1. Prompts of different lengths, with different limits, in one call")
    prompts = ["The capital of France is", "One, two, three, four,", "Hello"]
    params = [
        SamplingParams(temperature=0, max_tokens=8, stop="\n"),
        SamplingParams(temperature=0, max_tokens=8),
        SamplingParams(temperature=0, max_tokens=3),
    ]
    for output in llm.generate(prompts, params):
        [completion] = output.outputs
        print(f"   {output.prompt!r} -> {completion.text!r}")
        print(f"      {len(output.prompt_token_ids)} tokens in, ", end="")
        print(
            f"{len(completion.token_ids)} out, finished by {completion.finish_reason!r}, ", end=""
        )
        print(f"first token after {1000 * output.metrics.time_to_first_token:.0f} ms")


def sample(llm: LLM) -> None:
    """Candidates for one prompt; how sure the model was."""
    print("2. Two candidates of one prompt, with a seed: the same in each run")
    params = SamplingParams(n=2, temperature=0.8, top_p=0.95, max_tokens=8, seed=1, logprobs=2)
    [output] = llm.generate("The capital of France is", params)
    for completion in output.outputs:
        print(f"   {completion.index}: {completion.text!r}, ", end="")
        print(f"log probability {completion.cumulative_logprob:.2f}")
    likely = output.outputs[0].logprobs[0].values()
    print("   the first token could be", [(e.decoded_token, round(e.logprob, 2)) for e in likely])


def converse(llm: LLM) -> None:
    """A question in the checkpoint's chat template, its answer as it comes."""
    print("3. A conversation, streamed: each | is an output of its own")
    if llm.get_tokenizer().chat_template is None:
        print("   this model has no chat template")
        return
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompts = llm.preprocess_chat(messages)
    print("   ", end="")
    for output in llm.stream(prompts, SamplingParams(temperature=0, max_tokens=32)):
        for completion in output.outputs:
            print(completion.text, end="|", flush=True)
    print()


def step_by_hand(llm: LLM) -> None:
    """What `LLMEngine.step` does, without its mailbox, text, and care for failures."""
    print("4. The loop by hand")
    engine = llm.llm_engine
    tokenizer, scheduler, executor = engine.tokenizer, engine.scheduler, engine.executor
    ids = tokenizer("The capital of France is")["input_ids"]
    request = Request("by-hand", None, ids, SamplingParams(temperature=0, max_tokens=4))
    scheduler.add_request(request)
    while scheduler.has_unfinished_requests():
        plan = scheduler.schedule()  # who runs, and which tokens of each
        result = executor.execute(plan)  # one flat batch, the model, the sampler
        scheduler.update(plan, result)  # append the tokens; is anybody done?
        [entry], [token_ids] = plan.scheduled, result.token_ids
        print(f"   computed {len(entry.token_ids)} from position {entry.start}, ", end="")
        print(f"got {tokenizer.decode(token_ids)!r}")


if __name__ == "__main__":
    main()
