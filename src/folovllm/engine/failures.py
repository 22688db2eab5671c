"""What is said of a step that failed, and whether the engine can go on after it."""

import torch

from folovllm.core.plan import StepPlan
from folovllm.errors import is_out_of_memory


def explain_failure(plan: StepPlan, cause: BaseException) -> str:
    """Say what a user is told of a step that failed: its size, the cause, and what to do."""
    longest = max((entry.start + len(entry.token_ids) for entry in plan.scheduled), default=0)
    size = (
        f"a step of {plan.num_tokens} tokens of {len(plan.scheduled)} sequences, "
        f"the longest of {longest} tokens,"
    )
    if not isinstance(cause, Exception):
        return f"{size} was interrupted"
    return f"{size} failed: {describe(cause)}{_advice(cause)}"


def describe(error: BaseException | None) -> str:
    """Return an error's class and the first line of its message."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # noqa: BLE001 - an exception class of a user's own
        lines = []
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def is_fatal(error: Exception) -> bool:
    """Whether the device is of no use any more to this process.

    After an error of the device other than want of memory every later call fails as well: the
    driver gives a process its device back no more.
    """
    return not is_out_of_memory(error) and (
        isinstance(error, torch.AcceleratorError)
        or any(words in str(error) for words in ("CUDA error", "CUDA driver error", "[CUDA]"))
    )


def _advice(cause: Exception) -> str:
    if is_fatal(cause):
        return (
            "; the GPU is lost to this process: start it anew, and see what "
            "`folovllm verify-cuda` says of the GPU"
        )
    if not is_out_of_memory(cause):
        return ""
    on_device = isinstance(cause, torch.OutOfMemoryError) or "CUDA" in str(cause)
    cache = "gpu_memory_utilization" if on_device else "cpu_kvcache_space"
    return f"; lower max_num_batched_tokens, max_num_seqs or {cache}"
