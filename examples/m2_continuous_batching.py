"""Milestone 2: continuous batching. Requests join and leave between two steps of the model.

Drives the engine by hand and shows who is computed in each step, by the plans that its executor
is given:

    python examples/m2_continuous_batching.py
"""

from folovllm import EngineConfig, LLMEngine, ModelConfig, SamplingParams, ensure_demo_model
from folovllm.core.plan import StepPlan, StepResult
from folovllm.executor.protocol import Executor

PLACES = 3
"""Most sequences in a step: few, so that somebody has to wait."""

ARRIVALS = {  # by step: name, prompt, tokens to generate
    1: [("a", "The capital of France is", 9), ("b", "Hello", 3)],
    3: [("c", "One, two, three, four,", 5), ("d", "The opposite of hot is", 4)],
    5: [("e", "Water boils at", 6)],
}
SEQUENCES = [f"{name}-0" for requests in ARRIVALS.values() for name, _, _ in requests]
"""Each request has one sequence; a plan knows sequences alone."""


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


def main() -> None:
    """Run the engine until everything that arrives is done."""
    named = "model" in ModelConfig.find_in_environment()
    model = {} if named else {"model": str(ensure_demo_model())}
    engine = LLMEngine(EngineConfig.from_options(**model, max_num_seqs=PLACES))
    engine.executor = recorder = Recorder(engine.executor)
    plans = recorder.plans

    print(f"{PLACES} places; 'in 5': 5 prompt tokens computed, 'out': 1 token more, '.': waits")
    print("step | " + " ".join(f"{seq_id:5}" for seq_id in SEQUENCES) + "| tokens")
    waiting: set[str] = set()
    texts: dict[str, str] = {}
    step = 0
    while step < max(ARRIVALS) or engine.has_unfinished_requests():
        step += 1
        for name, prompt, max_tokens in ARRIVALS.get(step, ()):
            params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
            engine.add_request(name, prompt, params)
            waiting.add(f"{name}-0")
        outputs = engine.step()
        show(step, plans[-1], waiting)
        # By default an output has all of the text so far; there is one for each that moved.
        texts |= {o.request_id: o.prompt + o.outputs[0].text for o in outputs if o.finished}

    for name, text in sorted(texts.items()):
        print(f"{name}: {text!r}")
    compare(step)
    explain(plans[3])


def show(step: int, plan: StepPlan, waiting: set[str]) -> None:
    """One row: what each sequence had computed."""
    waiting -= {new.seq_id for new in plan.new}
    cells = dict.fromkeys(waiting, ".")
    for entry in plan.scheduled:  # these prompts are short: each is computed in one step
        cells[entry.seq_id] = f"in {len(entry.token_ids)}" if entry.start == 0 else "out"
    row = " ".join(f"{cells.get(seq_id, ''):5}" for seq_id in SEQUENCES)
    print(f"{step:4} | {row}| {plan.num_tokens}")


def explain(plan: StepPlan) -> None:
    """A plan as the worker gets it: ids and numbers, which could travel to another process."""
    print("\nThe plan of step 4. To forget:", *plan.finished or ["nobody"])
    for new in plan.new:
        print(f"   new: {new.seq_id}, temperature {new.sampling.temperature}")
    for entry in plan.scheduled:
        print(
            f"   {entry.seq_id}: from position {entry.start} token_ids {entry.token_ids}, ", end=""
        )
        print(f"blocks from place {entry.first_block} on {entry.block_ids}, ", end="")
        print(f"samples {entry.samples}")


def compare(steps: int) -> None:
    """Against batches that are filled once and run until their longest member is done."""
    lengths = [length for requests in ARRIVALS.values() for _, _, length in requests]
    batches = [lengths[i : i + PLACES] for i in range(0, len(lengths), PLACES)]
    static = sum(max(batch) for batch in batches)
    print(f"{steps} steps. Batches that are filled once: {batches}, ", end="")
    print(f"at least {static} steps, and the first waits until the third has arrived")


if __name__ == "__main__":
    main()
