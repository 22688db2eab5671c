"""Executes plans in this process."""

import gc

import torch

from folovllm.core.plan import StepPlan, StepResult
from folovllm.worker.model_runner import ModelRunner


class LocalExecutor:
    """An `Executor` with one worker.

    Attributes:
        runner: the worker; gone after `shutdown`.
        num_blocks: blocks of its cache on the device, the null block among them.
        num_host_blocks: blocks in host memory to swap to.
    """

    def __init__(self, runner: ModelRunner) -> None:
        """Take over a worker that is ready."""
        self.runner = runner
        self.num_blocks = runner.cache.num_blocks
        self.num_host_blocks = runner.cache.num_host_blocks

    def execute(self, plan: StepPlan) -> StepResult:
        """Execute one step: `Executor.execute`."""
        return self.runner.execute(plan)

    def shutdown(self) -> None:
        """Let go of the model and its cache; a second call does nothing."""
        if not hasattr(self, "runner"):
            return
        is_cuda = self.runner.model.device.type == "cuda"
        del self.runner
        if is_cuda:  # torch keeps what is freed, and modules refer to each other in circles
            gc.collect()
            torch.cuda.empty_cache()
