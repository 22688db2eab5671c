"""What a GPU can do with the model: how much memory is left, and whether swapping pays."""

import time
from dataclasses import dataclass

import torch

from folovllm.models.hf_adapter import LayerRecorder, PagedModel

_COPY_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Profile:
    """What was measured.

    Attributes:
        cache_bytes: memory that is left for the KV cache.
        seconds_a_token: of the largest step, for each of its tokens.
        copy_bandwidth: between pinned host memory and the device, in bytes a second.
    """

    cache_bytes: int
    seconds_a_token: float
    copy_bandwidth: float

    def swapping_pays(self, bytes_a_token: float) -> bool:
        """Whether moving a token's keys and values out and in beats computing them again."""
        return 2 * bytes_a_token / self.copy_bandwidth < self.seconds_a_token


@torch.inference_mode()
def profile_gpu(
    model: PagedModel, num_tokens: int, num_seqs: int, max_model_len: int, utilization: float
) -> Profile:
    """Run the largest step and see what is left.

    Args:
        model: on a CUDA device.
        num_tokens: the most tokens of a step.
        num_seqs: the most sequences of a step, for which logits are wanted and sorted.
        max_model_len: tokens of the longest sequence, beyond which there may be no positions.
        utilization: the share of the device's memory that may be used by all that runs on it.
    """
    device = model.device
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    positions = torch.arange(num_tokens, device=device) % max_model_len
    rows = torch.arange(min(num_seqs, num_tokens), device=device)
    _step(model, positions, rows)  # the first run loads kernels, and is not timed
    start = time.perf_counter()
    _step(model, positions, rows)
    seconds = (time.perf_counter() - start) / num_tokens
    activations = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    cache_bytes = int(total * utilization) - (total - free) - activations
    return Profile(cache_bytes, seconds, _copy_bandwidth(device))


def _step(model: PagedModel, positions: torch.Tensor, rows: torch.Tensor) -> None:
    logits = model.forward(torch.zeros_like(positions), positions, LayerRecorder(), rows)
    logits.float().sort()  # what the sampler takes most memory for
    torch.cuda.synchronize(model.device)


def _copy_bandwidth(device: torch.device) -> float:
    host = torch.empty(_COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    target = host.to(device)
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    target.copy_(host, non_blocking=True)
    torch.cuda.synchronize(device)
    return _COPY_BYTES / (time.perf_counter() - start)
