"""What really runs: every value of `EngineSetup`, decided once, each with its reason.

The values come from the configuration, the loaded checkpoint and the machine. Each function
here answers for one of them, and returns the value with its reason.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from folovllm.attention.backend import AttentionBackend
from folovllm.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from folovllm.config.setup import EngineSetup, Resolved, as_configured, reason_of
from folovllm.engine.cache_size import CacheDemand, resolve_cache
from folovllm.errors import ConfigError
from folovllm.loading.length import checkpoint_length
from folovllm.models.hf_adapter import PagedModel
from folovllm.worker.cuda_graphs import CudaCapture, GraphMaker, bucket_sizes, free_cuda_memory

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

DEFAULT_BATCHED_TOKENS = {"cpu": 512, "cuda": 8192}
"""Most tokens of a step by device. A CPU multiplies no faster with more than 512 rows, and the
others wait for as long as a step takes; the GPU's is vLLM's."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its device, before it is known how it will be run.

    Attributes:
        model: ready to run.
        tokenizer: the model's.
        generation_config: the checkpoint's.
        asked_device: the device that the caller named; None left it open.
        attention: what computes attention.
        linear_backends: how many linear layers each backend computes.
    """

    model: PagedModel
    tokenizer: "PreTrainedTokenizerBase"
    generation_config: "GenerationConfig"
    asked_device: str | torch.device | None
    attention: Resolved[AttentionBackend]
    linear_backends: Mapping[str, int]


def resolve(config: EngineConfig, loaded: LoadedModel) -> tuple[EngineSetup, GraphMaker | None]:
    """Decide every value of an engine.

    Returns:
        The values, and what captures steps of decoding where `graph_sizes` has any: it has
        measured what the graphs will take.

    Raises:
        ConfigError: there is no room for the cache, or settings contradict each other.
    """
    model, attention = loaded.model, loaded.attention[0]
    block_size = resolve_block_size(config.cache_config, attention)
    length = resolve_max_model_len(config, loaded)
    budget = resolve_batched_tokens(config.scheduler_config, model.device.type, length[0])
    sizes = resolve_graph_sizes(config, model.device, attention)
    maker = graph_maker(model, attention, sizes[0], block_size[0], length[0]) if sizes[0] else None
    reserved = maker.measure() if maker else 0
    if maker and not maker.sizes:
        maker, sizes = None, ((), "capturing failed (a warning above says how)")
    demand = CacheDemand(
        config, model, attention, block_size[0], length[0], budget[0], reserved=reserved
    )
    blocks, host_blocks = resolve_cache(demand)
    values: dict[str, Resolved[Any]] = {
        **_from_configuration(config),
        **_from_model(config.model_config, loaded),
        "block_size": block_size,
        "max_model_len": length,
        "max_num_batched_tokens": budget,
        "num_blocks": blocks,
        "num_host_blocks": host_blocks,
        "graph_sizes": sizes,
    }
    reasons = {name: reason for name, (_, reason) in values.items()}
    return EngineSetup(**{name: v for name, (v, _) in values.items()}, reasons=reasons), maker


def _from_configuration(config: EngineConfig) -> dict[str, Resolved[Any]]:
    """Return the values that nothing else has a say in."""
    fields = (
        (config.model_config, ("model", "seed")),
        (config.cache_config, ("enable_prefix_caching",)),
        (config.scheduler_config, ("max_num_seqs", "enable_chunked_prefill", "policy")),
    )
    return {name: as_configured(part, name) for part, names in fields for name in names}


def _from_model(config: ModelConfig, loaded: LoadedModel) -> dict[str, Resolved[Any]]:
    """Return the values that loading the model decided."""
    model, (attention, why) = loaded.model, loaded.attention
    if config.attention_backend is not None:
        why = reason_of(config, "attention_backend")
    return {
        "device": (model.device, device_reason(loaded.asked_device, model.device)),
        "dtype": (model.dtype, dtype_reason(config, model.device)),
        "kv_cache_dtype": (model.dtype, "the model's"),
        "attention_backend": (attention.name, why),
        "linear_backends": resolve_linear_backends(config, loaded.linear_backends),
        "vocab_size": (model.vocab_size, "the rows of the model's input embedding"),
        "eos_token_id": (loaded.tokenizer.eos_token_id, "the tokenizer's"),
        "stop_token_ids": resolve_stop_token_ids(
            loaded.generation_config, loaded.tokenizer.eos_token_id
        ),
    }


def resolve_linear_backends(
    config: ModelConfig, counts: Mapping[str, int]
) -> Resolved[Mapping[str, int]]:
    """Return how many linear layers each backend computes."""
    asked = config.linear_backend
    if asked is None:
        return counts, f"the first that serve the {sum(counts.values())} layers"
    reason = reason_of(config, "linear_backend")
    if others := sum(count for name, count in counts.items() if name != asked):
        reason += f", but for {others} layers that the model's code reads"
    return counts, reason


def asked_max_model_len(config: EngineConfig) -> int | None:
    """Return the most tokens of a sequence that was asked for; None leaves it to the checkpoint.

    Two fields have vLLM's name for it. Each is a limit, so the smaller one holds.
    """
    asked = (config.model_config.max_model_len, config.scheduler_config.max_model_len)
    return min((length for length in asked if length is not None), default=None)


def resolve_max_model_len(config: EngineConfig, loaded: LoadedModel) -> Resolved[int]:
    """Return the most tokens of a sequence, prompt and output.

    More than the checkpoint was made for may be asked of positions that go on (vLLM refuses it
    unless VLLM_ALLOW_LONG_MAX_MODEL_LEN is set; here the loader warns).

    Raises:
        ConfigError: more positions are asked for than the model has.
    """
    limit = loaded.model.position_limit
    value = asked_max_model_len(config)
    if value is None:
        tokenizer_limit = getattr(loaded.tokenizer, "model_max_length", None)
        value, reason = checkpoint_length(loaded.model.model.config, tokenizer_limit)
        if limit is not None and limit.count < value:
            return limit.count, f"the model: {limit.why}"
        return value, reason
    if limit is not None and limit.count < value:
        raise ConfigError(
            f"max_model_len: got {value}; {loaded.model.name} takes 1 to {limit.count}: {limit.why}"
        )
    return value, _why_asked(config, value)


def _why_asked(config: EngineConfig, value: int) -> str:
    """Return who asked for the smaller of two lengths."""
    parts = (config.model_config, config.scheduler_config)
    asked = [part for part in parts if part.max_model_len is not None]
    decisive = next(part for part in asked if part.max_model_len == value)
    reason = reason_of(decisive, "max_model_len")
    if larger := [part for part in asked if part.max_model_len != value]:
        reason += f", and less than the {larger[0].max_model_len} of {type(larger[0]).__name__}"
    return reason


def resolve_block_size(config: CacheConfig, attention: AttentionBackend) -> Resolved[int]:
    """Return the number of tokens in a block of the cache."""
    if config.asked_block_size is not None:
        return config.asked_block_size, reason_of(config, "block_size")
    return attention.block_size, f"the {attention.name} backend's preference"


def resolve_batched_tokens(
    config: SchedulerConfig, device_type: str, max_model_len: int
) -> Resolved[int]:
    """Return the most tokens in a step.

    Raises:
        ConfigError: a whole prompt may not fit a step, and must not be split.
    """
    asked = config.max_num_batched_tokens
    if asked is not None:
        if not config.enable_chunked_prefill and asked < max_model_len:
            raise ConfigError(
                f"max_num_batched_tokens: got {asked}; with enable_chunked_prefill=False it must "
                f"be at least max_model_len, {max_model_len}, for the longest prompt to fit in a "
                "step"
            )
        return asked, reason_of(config, "max_num_batched_tokens")
    suitable = DEFAULT_BATCHED_TOKENS.get(device_type, 2048)
    if not config.enable_chunked_prefill and max_model_len > suitable:
        return max_model_len, "max_model_len: without chunks a whole prompt must fit"
    device = {"cpu": "a CPU", "cuda": "a GPU"}.get(device_type, "other devices")
    return suitable, f"what suits {device}"


def resolve_stop_token_ids(
    generation_config: "GenerationConfig", eos_token_id: int | None
) -> Resolved[tuple[int, ...]]:
    """Return the ids beside the tokenizer's own by which the checkpoint ends a sequence."""
    found = generation_config.eos_token_id
    ids = found if isinstance(found, list) else [] if found is None else [found]
    further = tuple(dict.fromkeys(token_id for token_id in ids if token_id != eos_token_id))
    source = "the checkpoint's generation config"
    return further, source if further else f"{source} names no further ones"


def device_reason(asked: str | torch.device | None, device: torch.device) -> str:
    """Return why the model is where it is."""
    if asked is not None:
        return "asked for"
    return "torch finds a GPU" if device.type == "cuda" else "torch finds no GPU"


def dtype_reason(config: ModelConfig, device: torch.device) -> str:
    """Return why the weights have their data type (`folovllm.utils.dtypes.choose_dtype`)."""
    if config.torch_dtype is not None:
        return reason_of(config, "dtype")
    if device.type == "cpu":
        return "what suits a CPU"
    return "the checkpoint's half type, or float16 where it has none that the device computes in"


def resolve_graph_sizes(
    config: EngineConfig, device: torch.device, attention: AttentionBackend
) -> Resolved[tuple[int, ...]]:
    """Return the batch sizes whose steps of decoding are to be captured."""
    if device.type != "cuda":
        return (), "CUDA graphs are for GPUs"
    if config.model_config.enforce_eager:
        return (), f"enforce_eager, {reason_of(config.model_config, 'enforce_eager')}"
    if not attention.captures:
        return (), f"the {attention.name} backend cannot be captured"
    return bucket_sizes(config.scheduler_config.max_num_seqs), "vLLM's sizes, up to max_num_seqs"


def graph_maker(
    model: PagedModel,
    attention: AttentionBackend,
    sizes: tuple[int, ...],
    block_size: int,
    max_model_len: int,
) -> GraphMaker:
    """Make what captures steps of decoding on the model's device."""
    device = model.device
    return GraphMaker(
        model,
        attention,
        sizes,
        block_size,
        max_model_len,
        lambda: CudaCapture(device),
        lambda: free_cuda_memory(device),
    )


def log_setup(setup: EngineSetup) -> None:
    """Log every value with its reason, a line each, and a limit that may surprise."""
    for name, value, reason in setup.rows():
        logger.info("%s: %s (%s)", name, value, reason)
    if setup.longest_sequence < setup.max_model_len:
        logger.warning(
            "the KV cache holds %d tokens, fewer than the %d of max_model_len: a sequence that "
            "fills it ends there, with finish_reason 'length'; more memory for the cache "
            "(cpu_kvcache_space, gpu_memory_utilization) allows longer ones",
            setup.cache_tokens,
            setup.max_model_len,
        )
