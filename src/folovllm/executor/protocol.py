"""The seam between the engine and the workers that own the tensors."""

from typing import Protocol

from folovllm.core.plan import StepPlan, StepResult


class Executor(Protocol):
    """Executes plans, on one worker or on several that are given the same plans.

    Attributes:
        num_blocks: blocks of the cache on each device, the null block among them.
        num_host_blocks: blocks in host memory to swap to.
    """

    num_blocks: int
    num_host_blocks: int

    def execute(self, plan: StepPlan) -> StepResult:
        """Execute one step: forget, move blocks, run the model, sample.

        Raises:
            Exception: whatever ended the step; nothing of its results is kept.
        """
        ...

    def shutdown(self) -> None:
        """Give the devices and the memory back; no step comes after it."""
        ...
