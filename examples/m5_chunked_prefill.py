"""Milestone 5: chunked prefill. A long prompt is spread over several steps.

Two users are reading their answers as a third comes with a long prompt:

    python examples/m5_chunked_prefill.py
"""

import time
from collections.abc import Callable

from folovllm import EngineConfig, LLMEngine, ModelConfig, SamplingParams, ensure_demo_model
from folovllm.core.plan import StepPlan, StepResult
from folovllm.executor.protocol import Executor

READERS = ["The capital of France is", "One, two, three, four,"]
LONG = "Report: nothing happened today, as on any other day. " * 40 + "The capital of France is"


class Result:
    """What the users saw.

    Attributes:
        waits: seconds of each step in which the readers wait for a token.
        first_token: seconds from the arrival of the long prompt to its first token.
        texts: the answers by request.
    """

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.waits: list[float] = []
        self.first_token = 0.0
        self.texts: dict[str, str] = {}


def main() -> None:
    """The same requests, with the long prompt in one step and in chunks."""
    print("whole: the prompt in one step")
    whole = serve(enable_chunked_prefill=False)
    print("chunks: at most 64 tokens a step")
    chunks = serve(max_num_batched_tokens=64)
    print(
        f"The readers' longest wait for a token: {1000 * max(whole.waits):.0f} ms whole, ", end=""
    )
    print(f"{1000 * max(chunks.waits):.0f} ms in chunks.")
    print(f"First token of the long prompt: {1000 * whole.first_token:.0f} ms whole, ", end="")
    print(f"{1000 * chunks.first_token:.0f} ms in chunks.")
    print(f"The same text in both: {whole.texts == chunks.texts}; ", end="")
    print(f"the long prompt goes on with {chunks.texts['long']!r}")


def serve(**options: object) -> Result:
    """Make an engine and run the requests on it, twice: the first steps of all are slow."""
    named = "model" in ModelConfig.find_in_environment()
    model = {} if named else {"model": str(ensure_demo_model())}
    options |= {"max_model_len": 1024, "enable_prefix_caching": False, **model}
    engine = LLMEngine(EngineConfig.from_options(**options))
    run(engine, lambda *_: None)
    return run(engine, show)


class Recorder:
    """An executor that keeps the plans, and lets another one execute them."""

    def __init__(self, executor: Executor) -> None:
        """Stand before an executor."""
        self.executor = executor
        self.plans: list[StepPlan] = []

    def execute(self, plan: StepPlan) -> StepResult:
        """Keep the plan, and hand it on."""
        self.plans.append(plan)
        return self.executor.execute(plan)


def run(engine: LLMEngine, report: Callable[[StepPlan, float], None]) -> Result:
    """Let two requests decode for four steps, add the long one, and run to the end."""
    for place, prompt in enumerate(READERS):
        params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
        engine.add_request(f"reader {place}", prompt, params)
    executor = engine.executor
    engine.executor = recorder = Recorder(executor)
    result, plans = Result(), recorder.plans
    while engine.has_unfinished_requests():
        if len(plans) == 4:
            engine.add_request("long", LONG, SamplingParams(temperature=0, max_tokens=4))
        start = time.perf_counter()
        outputs = engine.step()
        seconds = time.perf_counter() - start
        if any(entry.seq_id.startswith("reader") for entry in plans[-1].scheduled):
            result.waits.append(seconds)
        report(plans[-1], seconds)
        for output in (output for output in outputs if output.finished):
            result.texts[output.request_id] = output.outputs[0].text
            if output.request_id == "long":
                result.first_token = output.metrics.time_to_first_token
    engine.executor = executor
    return result


def show(plan: StepPlan, seconds: float) -> None:
    """A line for each step with a part of a prompt in it."""
    prompts = [entry for entry in plan.scheduled if len(entry.token_ids) > 1]
    if prompts:
        parts = [
            f"{entry.seq_id}: {entry.start} to {entry.start + len(entry.token_ids) - 1}"
            for entry in prompts
        ]
        decoding = len(plan.scheduled) - len(prompts)
        print(f"   {plan.num_tokens:4} tokens, {1000 * seconds:4.0f} ms; ", end="")
        print(", ".join(parts) + (f"; {decoding} decoding" if decoding else ""))


if __name__ == "__main__":
    main()
