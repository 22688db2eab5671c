"""How many blocks the KV cache gets, on the device and on the host, and why."""

from dataclasses import dataclass

from folovllm.attention.backend import AttentionBackend
from folovllm.config import EngineConfig
from folovllm.config.setup import Resolved, reason_of
from folovllm.errors import ConfigError
from folovllm.machine.memory import available_memory
from folovllm.models.hf_adapter import PagedModel
from folovllm.worker.kv_cache import GIB, bytes_per_block, cpu_cache_bytes
from folovllm.worker.memory import Profile, profile_gpu


@dataclass(frozen=True, slots=True)
class CacheDemand:
    """What a cache is made for.

    Attributes:
        config: the sizes that were asked for.
        model: what computes the keys and values.
        attention: what reads them.
        block_size: tokens in a block.
        max_model_len: most tokens of a sequence.
        max_num_batched_tokens: most tokens in a step.
        reserved: bytes of the device's memory that captured graphs will take.
    """

    config: EngineConfig
    model: PagedModel
    attention: AttentionBackend
    block_size: int
    max_model_len: int
    max_num_batched_tokens: int
    reserved: int = 0

    @property
    def block_bytes(self) -> int:
        """The size of one block of all layers."""
        return bytes_per_block(self.model.layers, self.block_size, self.model.dtype)

    @property
    def blocks_of_longest(self) -> int:
        """The number of blocks that the longest sequence fills."""
        return -(-self.max_model_len // self.block_size)

    @property
    def max_num_seqs(self) -> int:
        """The most sequences in a step."""
        return self.config.scheduler_config.max_num_seqs


def resolve_cache(demand: CacheDemand) -> tuple[Resolved[int], Resolved[int]]:
    """Measure what is free and divide it into blocks.

    Returns:
        The number of blocks on the device, the null block included, and on the host.

    Raises:
        ConfigError: there is no room for a cache, or for the largest step.
    """
    profile = _profile(demand) if demand.model.device.type == "cuda" else None
    blocks = resolve_num_blocks(demand, *_free_bytes(demand, profile))
    return blocks, resolve_host_blocks(demand, profile)


def _profile(demand: CacheDemand) -> Profile:
    return profile_gpu(
        demand.model,
        demand.attention,
        demand.block_size,
        demand.max_num_batched_tokens,
        demand.max_num_seqs,
        demand.max_model_len,
        demand.config.cache_config.gpu_memory_utilization,
    )


def _free_bytes(demand: CacheDemand, profile: Profile | None) -> Resolved[int]:
    """Return the bytes that the cache may take."""
    cache = demand.config.cache_config
    if profile is not None:
        share = f"{cache.gpu_memory_utilization:.0%} of the GPU's memory"
        return profile.cache_bytes - demand.reserved, f"what is left of {share}"
    size = cpu_cache_bytes(cache.cpu_kvcache_space) - demand.reserved
    if cache.cpu_kvcache_space is None:
        return size, "4 GiB, or half of the free memory where that is less"
    return size, reason_of(cache, "cpu_kvcache_space")


def resolve_num_blocks(demand: CacheDemand, free: int, source: str) -> Resolved[int]:
    """Return the number of blocks on the device, the null block included.

    Args:
        demand: what the cache is made for.
        free: bytes that it may take.
        source: why it may take them.

    Raises:
        ConfigError: not even one block has room, or fewer than were asked for.
    """
    cache, longest = demand.config.cache_config, demand.blocks_of_longest
    # More than every sequence at its longest could never be used.
    usable = demand.max_num_seqs * longest + 1
    count, why = free // demand.block_bytes, source
    if cache.num_gpu_blocks_override is not None:
        count, why = cache.num_gpu_blocks_override, reason_of(cache, "num_gpu_blocks_override")
        _check_memory(demand, count)
    elif count > usable:
        count, why = usable, f"all that {demand.max_num_seqs} sequences can use"
    if count < 2:
        raise ConfigError(
            f"no room for a KV cache: a block of {demand.block_size} tokens takes "
            f"{demand.block_bytes / 2**20:.1f} MiB, and {max(0, free) / 2**20:.1f} MiB are left; "
            "raise cpu_kvcache_space (CPU) or gpu_memory_utilization (GPU), or take a smaller model"
        )
    room = (count - 1) / longest
    size = f"{count * demand.block_bytes / GIB:.2f} GiB"
    return count, f"{why}: {size}, {room:.1f} sequences of {demand.max_model_len} tokens"


def _check_memory(demand: CacheDemand, count: int) -> None:
    """Refuse blocks that a CPU's memory has no room for: it would be missed in use alone."""
    size, free = count * demand.block_bytes, available_memory()
    if demand.model.device.type == "cpu" and size > free:
        raise ConfigError(
            f"num_gpu_blocks_override: got {count}; so many blocks take {size / GIB:.1f} GiB, and "
            f"{free / GIB:.1f} GiB of memory are free: 2 to {free // demand.block_bytes} are taken"
        )


def resolve_host_blocks(demand: CacheDemand, profile: Profile | None) -> Resolved[int]:
    """Return the number of blocks in host memory to swap sequences out to.

    Args:
        demand: what the cache is made for.
        profile: of the GPU; None on a CPU.
    """
    cache = demand.config.cache_config
    if profile is None:
        return 0, "a CPU's cache is in host memory already"
    if not profile.swapping_pays(demand.block_bytes / demand.block_size):
        return 0, "computing tokens again is faster than swapping them"
    count = int(cache.swap_space * GIB) // demand.block_bytes
    return count, f"swap_space of {cache.swap_space:g} GiB, {reason_of(cache, 'swap_space')}"
