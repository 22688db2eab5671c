"""From a configuration to the parts of an engine."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from folovllm.attention.backend import AttentionBackend, AttentionNeeds, LayerAttention
from folovllm.attention.choice import (
    choose_backend as choose_attention,
    find_backend as find_attention,
)
from folovllm.config import EngineConfig
from folovllm.core.kv_cache_manager import KVCacheManager
from folovllm.core.scheduler import Scheduler
from folovllm.errors import ConfigError
from folovllm.linear.packing import LinearPacker
from folovllm.machine.memory import keep_freed_memory, use_huge_pages
from folovllm.machine.threads import use_allowed_cores
from folovllm.model_loader import ModelLoader
from folovllm.models.check import ModelCheck
from folovllm.models.fusion import fuse
from folovllm.models.hf_adapter import PagedModel
from folovllm.sampling.sampler import Sampler
from folovllm.text.input_processor import InputProcessor
from folovllm.utils.common import get_device
from folovllm.utils.timing import Phases
from folovllm.worker.cuda_graphs import (
    CudaCapture,
    GraphMaker,
    bucket_sizes,
    free_cuda_memory,
)
from folovllm.worker.kv_cache import GIB, KVCache, bytes_per_block, cpu_cache_bytes
from folovllm.worker.memory import profile_gpu
from folovllm.worker.model_runner import ModelRunner

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

DEFAULT_BATCHED_TOKENS = {"cpu": 512, "cuda": 8192}
"""Most tokens of a step by device. A CPU multiplies no faster with more than 512 rows, and the
others wait for as long as a step takes; the GPU's is vLLM's."""


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What an engine is assembled from.

    `generation_config` is the checkpoint's; `load_seconds` says what each part of the work took.
    """

    tokenizer: "PreTrainedTokenizerBase"
    generation_config: "GenerationConfig"
    input_processor: InputProcessor
    cache_manager: KVCacheManager
    scheduler: Scheduler
    runner: ModelRunner
    load_seconds: dict[str, float]


def build_parts(config: EngineConfig, device: str | torch.device | None = None) -> EngineParts:
    """Load the model, take the memory of its cache and put everything around it together.

    Args:
        config: the engine's configuration.
        device: None for CUDA where there is one, else the CPU.

    Raises:
        ModelLoadError: the model cannot be loaded, or not be served.
        ConfigError: there is no room for its cache, or settings contradict each other.
    """
    phases = Phases()
    use_allowed_cores()
    use_huge_pages()
    _check_attention(config, device)
    hf_model, tokenizer = ModelLoader(config.model_config, phases).load_model_and_tokenizer(device)
    generation_config = hf_model.generation_config
    model = PagedModel(hf_model)
    attention, block_size = _choose_attention(config, model)
    check = ModelCheck(model, block_size)
    speed_up_linears(model, config.model_config.linear_backend)
    check.run(attention)
    max_model_len = config.scheduler_config.max_model_len or config.model_config.max_model_len or 0
    budget = batched_tokens(config, model.device.type, max_model_len)
    extra_eos = eos_token_ids(generation_config)
    maker = graph_maker(config, model, attention, block_size, max_model_len)
    reserved = maker.measure() if maker else 0
    num_blocks, num_host_blocks = _count_blocks(
        config, model, attention, block_size, max_model_len, budget, reserved
    )
    cache_manager = KVCacheManager(
        num_blocks,
        block_size,
        enable_prefix_caching=config.cache_config.enable_prefix_caching,
        num_host_blocks=num_host_blocks,
    )
    scheduler = Scheduler(
        config.scheduler_config,
        cache_manager,
        max_model_len=max_model_len,
        max_num_batched_tokens=budget,
        eos_token_id=tokenizer.eos_token_id,
        extra_eos_token_ids=extra_eos,
    )
    processor = InputProcessor(tokenizer, max_model_len=max_model_len, vocab_size=model.vocab_size)
    sampler = Sampler(
        model.vocab_size,
        model.device,
        eos_token_ids={tokenizer.eos_token_id, *extra_eos} - {None},
        seed=config.model_config.seed,
        encode_word=processor.encode_word,
    )
    cache = KVCache(
        model.layers, num_blocks, num_host_blocks, block_size, model.dtype, model.device
    )
    if model.device.type == "cpu":
        keep_freed_memory()  # from here on: what loading freed is better given back
    graphs = maker.make(cache.layers) if maker else None
    runner = ModelRunner(model, cache, attention, sampler, block_size, graphs)
    phases.end("weights placed")
    return EngineParts(
        *(tokenizer, generation_config, processor, cache_manager, scheduler, runner),
        load_seconds=phases.seconds,
    )


def _choose_attention(config: EngineConfig, model: PagedModel) -> tuple[AttentionBackend, int]:
    """The attention backend, and the size of the cache's blocks: where none was asked for, its."""
    needs = _attention_needs(config, model.device, model.dtype, tuple(model.attention))
    backend = choose_attention(needs, config.model_config.attention_backend)
    return backend, needs.block_size or backend.block_size


def speed_up_linears(model: PagedModel, asked: str | None) -> dict[str, int]:
    """Give the linear layers to backends; return how many each computes, by its name."""
    linears = LinearPacker(model.device, asked, model.weights_read)
    if model.device.type == "cpu":
        fuse(model.model, linears.merge)
    linears.pack(model.model)
    return linears.counts


def eos_token_ids(generation_config: "GenerationConfig") -> list[int]:
    """The ids that end a sequence by the checkpoint's generation config."""
    ids = generation_config.eos_token_id
    if ids is None:
        return []
    return list(ids) if isinstance(ids, list) else [ids]


def batched_tokens(config: EngineConfig, device_type: str, max_model_len: int) -> int:
    """The most tokens in a step: what was asked for, or what suits the device."""
    asked = config.scheduler_config.max_num_batched_tokens
    if asked is not None:
        return asked
    chosen = DEFAULT_BATCHED_TOKENS.get(device_type, 2048)
    whole_prompts = not config.scheduler_config.enable_chunked_prefill
    return max(chosen, max_model_len) if whole_prompts else chosen


def _check_attention(config: EngineConfig, device: str | torch.device | None) -> None:
    """Refuse a backend that cannot serve here whatever the model is, before it is loaded."""
    asked = config.model_config.attention_backend
    if asked is not None:
        dtype = config.model_config.torch_dtype or torch.float16  # which no backend refuses
        find_attention(_attention_needs(config, get_device(device), dtype, ()), asked)


def _attention_needs(
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype,
    layers: tuple[LayerAttention, ...],
) -> AttentionNeeds:
    cache = config.cache_config
    asked = cache.block_size if "block_size" in cache.model_fields_set else None
    return AttentionNeeds(device, dtype, layers, asked)


def graph_maker(
    config: EngineConfig,
    model: PagedModel,
    attention: AttentionBackend,
    block_size: int,
    max_model_len: int,
) -> GraphMaker | None:
    """What captures steps of decoding, where they can be captured and that is wanted."""
    device = model.device
    if device.type != "cuda" or config.model_config.enforce_eager:
        return None
    if not attention.captures:
        logger.info("no CUDA graphs: the %s backend cannot be captured", attention.name)
        return None
    return GraphMaker(
        model,
        attention,
        bucket_sizes(config.scheduler_config.max_num_seqs),
        block_size,
        max_model_len,
        lambda: CudaCapture(device),
        lambda: free_cuda_memory(device),
    )


def _count_blocks(
    config: EngineConfig,
    model: PagedModel,
    attention: AttentionBackend,
    block_size: int,
    max_model_len: int,
    budget: int,
    reserved: int = 0,
) -> tuple[int, int]:
    """How many blocks the cache has on the device, block 0 included, and on the host.

    `reserved` are bytes of its memory that something else will take.
    """
    cache = config.cache_config
    block_bytes = bytes_per_block(model.layers, block_size, model.dtype)
    host_blocks = 0
    if model.device.type == "cuda":
        profile = profile_gpu(
            model,
            attention,
            block_size,
            budget,
            config.scheduler_config.max_num_seqs,
            max_model_len,
            cache.gpu_memory_utilization,
        )
        size = profile.cache_bytes
        if profile.swapping_pays(block_bytes / block_size):
            host_blocks = int(cache.swap_space * GIB) // block_bytes
    else:
        size = cpu_cache_bytes(cache.cpu_kvcache_space)
    size -= reserved
    # More than every sequence at its longest could never be used.
    longest = -(-max_model_len // block_size)
    num_blocks = min(size // block_bytes, config.scheduler_config.max_num_seqs * longest + 1)
    num_blocks = cache.num_gpu_blocks_override or num_blocks
    if num_blocks < 2:
        raise ConfigError(
            f"no room for a KV cache: a block of {block_size} tokens takes "
            f"{block_bytes / 2**20:.1f} MiB, and {max(0, size) / 2**20:.1f} MiB are left; raise "
            "cpu_kvcache_space (CPU) or gpu_memory_utilization (GPU), or take a smaller model"
        )
    logger.info(
        "KV cache: %d blocks of %d tokens, %.2f GiB: room for %.1f sequences of %d tokens",
        num_blocks,
        block_size,
        num_blocks * block_bytes / GIB,
        (num_blocks - 1) / longest,
        max_model_len,
    )
    return num_blocks, host_blocks
