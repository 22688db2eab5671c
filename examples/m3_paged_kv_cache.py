"""Milestone 3: the paged KV cache. Blocks that grow with a sequence, are shared, and come back.

python examples/m3_paged_kv_cache.py
"""

from folovllm import EngineConfig, LLMEngine, ModelConfig, SamplingParams, ensure_demo_model
from folovllm.core.plan import StepPlan, StepResult

BLOCK_SIZE = 4
"""Small, so that a block is full soon; the default is 16."""


def main() -> None:
    """A cache of 12 blocks, and what happens in it."""
    named = "model" in ModelConfig.find_in_environment()
    model = {} if named else {"model": str(ensure_demo_model())}
    config = EngineConfig.from_options(
        **model,
        block_size=BLOCK_SIZE,
        num_gpu_blocks_override=12 + 1,
        max_model_len=48,
        enable_prefix_caching=False,  # its turn comes in m6
    )
    engine = LLMEngine(config)
    show_size(engine)
    engine.executor = Observer(engine)

    print("\n1. One sequence: a block more whenever the last one is full")
    run(engine, one=("The capital of France is", SamplingParams(temperature=0, max_tokens=8)))

    print("\n2. Three candidates of one prompt: computed once, its blocks shared; whoever writes")
    print("   to the last, partly filled block gets a copy, and the last owner keeps it")
    params = SamplingParams(n=3, temperature=0.8, seed=0, max_tokens=7, ignore_eos=True)
    run(engine, fork=("The capital of France is", params))

    print("\n3. Too much for 12 blocks: the latest gives way, and is computed again")
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    prompts = {"old": ("The capital of France is", params), "new": ("Water boils at", params)}
    run(engine, **prompts)

    engine.cache_manager.check_integrity([])  # raises if anybody still held a block
    print("\nEverything is finished, and every block is free.")


def show_size(engine: LLMEngine) -> None:
    """What a token and a block take, by the tensors themselves."""
    layers = engine.executor.runner.cache.layers
    a_block = sum(pages[0].nbytes for layer in layers for pages in layer)
    blocks, size, heads, width = layers[0].keys.shape
    print(f"{len(layers)} layers, each with keys and values of {blocks} blocks x {size} tokens x ")
    print(f"{heads} heads x {width} numbers: {a_block // size:,} bytes a token, ", end="")
    print(f"{a_block:,} a block. Block 0 is never handed out.")


class Observer:
    """An executor that shows what a plan changes in the block tables, and hands it on.

    A plan has only what is new of a table, so a worker keeps the tables; and so does this.
    """

    def __init__(self, engine: LLMEngine) -> None:
        """Stand before the engine's executor."""
        self.executor = engine.executor
        self.engine = engine
        self.tables: dict[str, list[int]] = {}
        self.num_preemptions = 0

    def execute(self, plan: StepPlan) -> StepResult:
        """Show the plan, then let it be executed."""
        if self.engine.scheduler.num_preemptions > self.num_preemptions:
            self.num_preemptions = self.engine.scheduler.num_preemptions
            print("   no block is free: one has to give way")
        for source, target in plan.copies:
            print(f"   copy block {source} to {target}")
        for seq_id in plan.finished:
            self.tables.pop(seq_id, None)
        for entry in plan.scheduled:
            table = self.tables.setdefault(entry.seq_id, [])
            table[entry.first_block :] = entry.block_ids
            count = len(entry.token_ids)
            if entry.block_ids or count > 1:
                print(
                    f"   {entry.seq_id:7}{count:3} computed, {entry.start + count:2} in all, ",
                    end="",
                )
                print(f"{self.engine.cache_manager.usage:4.0%} used: blocks {table}")
        return self.executor.execute(plan)


def run(engine: LLMEngine, **requests: tuple[str, SamplingParams]) -> None:
    """Run requests to their end."""
    for request_id, (prompt, params) in requests.items():
        engine.add_request(request_id, prompt, params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                texts = [output.prompt + completion.text for completion in output.outputs]
                print(f"   {output.request_id} is done: {texts}")


if __name__ == "__main__":
    main()
