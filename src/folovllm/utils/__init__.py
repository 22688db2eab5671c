"""Helpers without an opinion about inference."""

from folovllm.utils.common import (
    generate_request_id,
    get_device,
    get_gpu_memory_info,
    is_cuda_available,
    move_to_device,
    print_gpu_memory_info,
    set_random_seed,
)

__all__ = [
    "generate_request_id",
    "get_device",
    "get_gpu_memory_info",
    "is_cuda_available",
    "move_to_device",
    "print_gpu_memory_info",
    "set_random_seed",
]
