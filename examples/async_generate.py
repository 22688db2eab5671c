"""`AsyncLLM`: several callers of one event loop, each with a stream of its own.

This is how a server uses the engine: a thread of its own steps for all of them.

    python examples/async_generate.py
"""

import asyncio

from folovllm import AsyncLLM, EngineConfig, ModelConfig, SamplingParams, ensure_demo_model
from folovllm.sampling_params import RequestOutputKind

PROMPTS = {
    "france": "The capital of France is",
    "count": "One, two, three, four,",
    "water": "Water boils at",
}


async def main() -> None:
    """Ask all at once; then leave a stream before its end."""
    named = "model" in ModelConfig.find_in_environment()
    model = {} if named else {"model": str(ensure_demo_model())}
    engine = AsyncLLM(EngineConfig.from_options(**model))
    try:
        print("1. Three callers at the same time; each line is an output of one of them")
        texts = await asyncio.gather(*(listen(engine, name) for name in PROMPTS))
        for name, text in zip(PROMPTS, texts, strict=True):
            print(f"   {name}: {PROMPTS[name] + text!r}")
        print("2. A caller who leaves: closing the stream ends the request")
        await leave(engine)
    finally:
        engine.shutdown()
    print(f"   running: {engine.is_running}")


async def listen(engine: AsyncLLM, name: str) -> str:
    """Print the pieces of one answer as they come; return them joined."""
    params = SamplingParams(temperature=0, max_tokens=6, output_kind=RequestOutputKind.DELTA)
    pieces = []
    async for output in engine.generate(name, PROMPTS[name], params):
        pieces += [completion.text for completion in output.outputs]
        print(f"   {name:7} {pieces[-1]!r}")
    return "".join(pieces)


async def leave(engine: AsyncLLM) -> None:
    """Stop listening after the third token."""
    params = SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True)
    stream = engine.generate("endless", "Once upon a time", params)
    async for output in stream:  # without DELTA, each output has the whole text so far
        if len(output.outputs[0].token_ids) >= 3:
            print(f"   {output.outputs[0].text!r} is enough")
            break
    await stream.aclose()  # otherwise it goes on until Python collects the iterator
    left = engine.llm_engine.get_num_unfinished_requests()
    print(f"   unfinished requests: {left}")


if __name__ == "__main__":
    asyncio.run(main())
