"""Milestone 2: continuous batching. Requests join and leave between two steps of the model.

Drives the engine by hand and shows who is computed in each step:

    python examples/m2_continuous_batching.py
"""

from folovllm import EngineConfig, LLMEngine, ModelConfig, SamplingParams, ensure_demo_model
from folovllm.core.plan import SchedulerOutput

PLACES = 3
"""Most sequences in a step: few, so that somebody has to wait."""

ARRIVALS = {  # by step: name, prompt, tokens to generate
    1: [("a", "The capital of France is", 9), ("b", "Hello", 3)],
    3: [("c", "One, two, three, four,", 5), ("d", "The opposite of hot is", 4)],
    5: [("e", "Water boils at", 6)],
}
NAMES = [name for requests in ARRIVALS.values() for name, _, _ in requests]


def main() -> None:
    """Run the engine until everything that arrives is done."""
    named = "model" in ModelConfig.find_in_environment()
    model = {} if named else {"model": str(ensure_demo_model())}
    engine = LLMEngine(EngineConfig.from_options(**model, max_num_seqs=PLACES))
    plans = record_plans(engine)

    print(f"{PLACES} places; 'in 5': 5 prompt tokens computed, 'out': 1 token more, '.': waits")
    print("step | " + " ".join(f"{name:5}" for name in NAMES) + "| tokens")
    arrived: set[str] = set()
    texts: dict[str, str] = {}
    step = 0
    while step < max(ARRIVALS) or engine.has_unfinished_requests():
        step += 1
        for name, prompt, max_tokens in ARRIVALS.get(step, ()):
            params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
            engine.add_request(name, prompt, params)
            arrived.add(name)
        outputs = engine.step()
        show(step, plans[-1], waiting=arrived - set(texts))
        # By default an output has all of the text so far; there is one for each that moved.
        texts |= {o.request_id: o.prompt + o.outputs[0].text for o in outputs if o.finished}

    for name, text in sorted(texts.items()):
        print(f"{name}: {text!r}")
    compare(step)


def record_plans(engine: LLMEngine) -> list[SchedulerOutput]:
    """Keep the plan of each step, which the engine does not show."""
    plans: list[SchedulerOutput] = []
    schedule = engine.scheduler.schedule

    def recording() -> SchedulerOutput:
        plans.append(schedule())
        return plans[-1]

    engine.scheduler.schedule = recording
    return plans


def show(step: int, plan: SchedulerOutput, waiting: set[str]) -> None:
    """One row: what each request had computed."""
    cells = dict.fromkeys(waiting, ".")
    for entry in plan.scheduled:
        in_prompt = entry.start < entry.seq.get_prompt_len()
        cells[entry.seq.request_id] = f"in {entry.num_tokens}" if in_prompt else "out"
    row = " ".join(f"{cells.get(name, ''):5}" for name in NAMES)
    print(f"{step:4} | {row}| {plan.num_tokens}")


def compare(steps: int) -> None:
    """Against batches that are filled once and run until their longest member is done."""
    lengths = [length for requests in ARRIVALS.values() for _, _, length in requests]
    batches = [lengths[i : i + PLACES] for i in range(0, len(lengths), PLACES)]
    static = sum(max(batch) for batch in batches)
    print(f"{steps} steps. Batches that are filled once: {batches}, ", end="")
    print(f"at least {static} steps, and the first waits until the third has arrived")


if __name__ == "__main__":
    main()
