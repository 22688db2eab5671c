"""What a GPU can do with the model: how much memory is left, and whether swapping pays."""

import time
from dataclasses import dataclass
from itertools import count, islice

import torch

from folovllm.attention.backend import AttentionBackend, AttentionStep, LayerCache
from folovllm.attention.batch import Batch
from folovllm.core.plan import NewSequence, ScheduledSequence
from folovllm.errors import ConfigError
from folovllm.models.hf_adapter import PagedModel
from folovllm.sampling.sampler import Sampler
from folovllm.sampling_params import SamplingSpec
from folovllm.worker.batch import make_batch
from folovllm.worker.block_tables import BlockTables
from folovllm.worker.kv_cache import KVCache

_COPY_BYTES = 1 << 26

# What makes the sampler take most memory: a copy to edit, a sort, the probabilities.
_HARDEST = SamplingSpec(top_p=0.9, repetition_penalty=1.1, logprobs=5)


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


def profile_gpu(
    model: PagedModel,
    backend: AttentionBackend,
    block_size: int,
    num_tokens: int,
    num_seqs: int,
    max_model_len: int,
    utilization: float,
) -> Profile:
    """Run the largest step and see what is left.

    Args:
        model: on a CUDA device.
        backend: how its layers attend.
        block_size: tokens in a block of the cache.
        num_tokens: the most tokens of a step.
        num_seqs: the most sequences of a step, for which logits are wanted.
        max_model_len: tokens of the longest sequence, beyond which there may be no positions.
        utilization: the share of the device's memory that may be used by all that runs on it.

    Raises:
        ConfigError: the largest step does not fit beside the weights.
    """
    device = model.device
    lengths = [min(max_model_len, num_tokens - i) for i in range(0, num_tokens, max_model_len)]
    try:
        seconds, activations = _try_out(model, backend, block_size, lengths, num_seqs)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"no room for a step of {num_tokens} tokens beside the weights on {device}; lower "
            "max_num_batched_tokens or max_num_seqs, or take a smaller model"
        ) from error
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    cache_bytes = int(total * utilization) - (total - free) - activations
    return Profile(cache_bytes, seconds / num_tokens, _copy_bandwidth(device))


@torch.inference_mode()
def _try_out(
    model: PagedModel,
    backend: AttentionBackend,
    block_size: int,
    lengths: list[int],
    num_seqs: int,
) -> tuple[float, int]:
    """The seconds that a step of whole prompts takes, and the bytes that it needs for a while."""
    device = model.device
    batch, layers = _lay_out(model, lengths, block_size)
    ids, positions = (torch.from_numpy(a).to(device) for a in (batch.token_ids, batch.positions))
    rows = torch.arange(min(num_seqs, len(ids)), device=device)
    sampler = Sampler(model.vocab_size, device, seed=0)
    seq_ids = [str(row) for row in range(len(rows))]
    sampler.meet(NewSequence(seq_id, 0, _HARDEST, (0,)) for seq_id in seq_ids)

    def step() -> None:
        attention = AttentionStep(backend, layers, backend.build(batch, device))
        logits = model.forward(ids, positions, attention, rows)
        sampler.sample(logits, seq_ids)
        torch.cuda.synchronize(device)

    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()  # the first run loads kernels, and is not timed
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated(device) - before


def _lay_out(
    model: PagedModel, lengths: list[int], block_size: int
) -> tuple[Batch, list[LayerCache]]:
    """Prompts of these lengths in blocks one after another; like layers share one cache."""
    blocks = count(1)
    entries = [
        ScheduledSequence(
            str(i), 0, (0,) * length, 0, tuple(islice(blocks, -(-length // block_size)))
        )
        for i, length in enumerate(lengths)
    ]
    batch = make_batch(entries, BlockTables(), block_size)
    specs = list(dict.fromkeys(model.layers))
    cache = KVCache(specs, next(blocks), 0, block_size, model.dtype, model.device)
    of_spec = dict(zip(specs, cache.layers, strict=True))
    return batch, [of_spec[spec] for spec in model.layers]


def _copy_bandwidth(device: torch.device) -> float:
    host = torch.empty(_COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    target = host.to(device)
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    target.copy_(host, non_blocking=True)
    torch.cuda.synchronize(device)
    return _COPY_BYTES / (time.perf_counter() - start)
