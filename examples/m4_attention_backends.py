"""Milestone 4: who can compute attention here, and that all of them generate the same.

python examples/m4_attention_backends.py
"""

import time

from folovllm import LLM, ModelConfig, SamplingParams, ensure_demo_model
from folovllm.attention.backend import AttentionNeeds
from folovllm.attention.choice import BACKENDS

PROMPTS = ["The capital of France is", "Water boils at", "The largest planet is", "1, 2, 3, 4,"]


def main() -> None:
    """Ask every backend; then let those that can serve generate, with and without graphs."""
    named = "model" in ModelConfig.find_in_environment()
    model = None if named else str(ensure_demo_model())
    llm = LLM(model)
    setup = llm.llm_engine.setup
    on_cuda = setup.device.type == "cuda"
    dtype = str(setup.dtype).removeprefix("torch.")
    print(f"On {setup.device} in {dtype}, the choice is: {setup.attention_backend}, since ", end="")
    print(setup.reasons["attention_backend"])
    serving = [name for name, why in ask_all(llm).items() if why is None]
    del llm  # the cache has most of the memory

    print("\nThe same prompts, greedily:")
    texts = []
    for name in serving:
        for eager in (False, True) if on_cuda else (True,):
            llm = LLM(model, attention_backend=name, enforce_eager=eager)
            graphs = "captured graphs" if llm.llm_engine.executor.runner.graphs else "step by step"
            texts.append(generate(llm, f"{name}, {graphs}"))
            del llm
    alike = all(text == texts[0] for text in texts)
    print(f"   {PROMPTS[0] + texts[0][0]!r}" if alike else f"   not alike: {texts}")
    if not on_cuda:
        print("   (flash, triton and captured graphs need a GPU)")


def ask_all(llm: LLM) -> dict[str, str | None]:
    """Why each backend cannot serve this model on this device; None where it can."""
    setup, model = llm.llm_engine.setup, llm.llm_engine.executor.runner.model
    needs = AttentionNeeds(setup.device, setup.dtype, tuple(model.attention), block_size=None)
    answers = {backend.name: backend.refusal(needs) for backend in BACKENDS}
    for name, why in answers.items():
        print(f"   {name:7} {why or 'can serve'}")
    return answers


def generate(llm: LLM, what: str) -> list[str]:
    """Generate, and say how long it took."""
    params = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
    llm.generate(PROMPTS, params, use_tqdm=False)  # what is compiled at first use is not timed
    start = time.perf_counter()
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    seconds = time.perf_counter() - start
    print(f"   {what}: {len(PROMPTS) * 32 / seconds:.0f} tokens a second")
    return [output.outputs[0].text for output in outputs]


if __name__ == "__main__":
    main()
