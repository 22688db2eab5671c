"""What is said of a step that failed."""

import pytest
import torch

from folovllm.core.plan import ScheduledSequence, StepPlan
from folovllm.engine.failures import explain_failure, is_fatal
from folovllm.errors import is_out_of_memory

PLAN = StepPlan(
    (
        ScheduledSequence("a-0", 0, (1,) * 7, 0, ()),
        ScheduledSequence("b-0", 90, (1,), 0, (), ("b-0",)),
    )
)
SIZE = "a step of 8 tokens of 2 sequences, the longest of 91 tokens,"

GPU_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),
]
HOST_MEMORY = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
]
LOST = [
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    torch.AcceleratorError("CUDA error: the device is unavailable"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`"),
    RuntimeError("CUDA driver error: unspecified launch failure"),
    RuntimeError("Triton Error [CUDA]: misaligned address"),
]
OTHERS = [
    ValueError("index 7 is out of range"),
    RuntimeError("expected all tensors to be on the same device, found cuda:0 and cpu"),
    RuntimeError("out of resource: shared memory, Required: 200000, Hardware limit: 101376"),
]


@pytest.mark.parametrize(
    ("errors", "out_of_memory", "fatal", "end"),
    [
        (GPU_MEMORY, True, False, "max_num_seqs or gpu_memory_utilization"),
        (HOST_MEMORY, True, False, "max_num_seqs or cpu_kvcache_space"),
        (LOST, False, True, "what `folovllm verify-cuda` says of the GPU"),
        (OTHERS, False, False, None),
    ],
    ids=["gpu memory", "host memory", "lost", "others"],
)
def test_kinds(errors, out_of_memory, fatal, end):
    for error in errors:
        assert is_out_of_memory(error) is out_of_memory
        assert is_fatal(error) is fatal
        text = explain_failure(PLAN, error)
        assert text.startswith(f"{SIZE} failed: {type(error).__name__}: ")
        assert text.endswith(end or str(error))


@pytest.mark.parametrize(
    ("cause", "text"),
    [
        (KeyboardInterrupt(), f"{SIZE} was interrupted"),
        (KeyError(), f"{SIZE} failed: KeyError: no message"),
        (KeyError("a\n b"), f"{SIZE} failed: KeyError: 'a\\n b'"),
        (ValueError("\n first \nsecond"), f"{SIZE} failed: ValueError: first "),
    ],
)
def test_one_line(cause, text):
    assert explain_failure(PLAN, cause) == text
