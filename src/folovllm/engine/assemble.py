"""From a configuration to the parts of an engine."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from folovllm.attention.backend import AttentionNeeds, LayerAttention
from folovllm.attention.choice import find_backend as find_attention
from folovllm.config import EngineConfig
from folovllm.config.setup import EngineSetup
from folovllm.core.kv_cache_manager import KVCacheManager
from folovllm.core.scheduler import Scheduler
from folovllm.engine.resolve import (
    LoadedModel,
    asked_max_model_len,
    log_setup,
    resolve,
    resolve_block_size,
)
from folovllm.executor.local import LocalExecutor
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
from folovllm.worker.cuda_graphs import GraphMaker
from folovllm.worker.kv_cache import KVCache
from folovllm.worker.model_runner import ModelRunner

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What an engine is assembled from.

    Attributes:
        setup: the values that all of them were made with.
        tokenizer: the model's.
        generation_config: the checkpoint's.
        input_processor: makes requests.
        cache_manager: gives blocks of the cache to sequences.
        scheduler: plans steps.
        executor: executes them.
        load_seconds: what each part of the work took.
    """

    setup: EngineSetup
    tokenizer: "PreTrainedTokenizerBase"
    generation_config: "GenerationConfig"
    input_processor: InputProcessor
    cache_manager: KVCacheManager
    scheduler: Scheduler
    executor: LocalExecutor
    load_seconds: dict[str, float]


def build_parts(config: EngineConfig, device: str | torch.device | None = None) -> EngineParts:
    """Load the model, take the memory of its cache and put everything around it together.

    Args:
        config: the engine's configuration; it is only read.
        device: None for CUDA where there is one, else the CPU.

    Raises:
        ModelLoadError: the model cannot be loaded, or not be served.
        ConfigError: there is no room for its cache, or settings contradict each other.
    """
    phases = Phases()
    loaded = _load(config, device, phases)
    setup, maker = resolve(config, loaded)
    log_setup(setup)
    processor = InputProcessor(
        loaded.tokenizer,
        max_model_len=setup.max_model_len,
        vocab_size=setup.vocab_size,
        eos_token_ids=setup.eos_token_ids,
    )
    cache_manager = _make_cache_manager(setup)
    scheduler = Scheduler(setup, cache_manager)
    executor = LocalExecutor(_make_runner(setup, loaded, maker))
    phases.end("weights placed")
    return EngineParts(
        setup=setup,
        tokenizer=loaded.tokenizer,
        generation_config=loaded.generation_config,
        input_processor=processor,
        cache_manager=cache_manager,
        scheduler=scheduler,
        executor=executor,
        load_seconds=phases.seconds,
    )


def resolve_setup(config: EngineConfig, device: str | torch.device | None = None) -> EngineSetup:
    """Load the model and decide what an engine would run, without making one.

    Args:
        config: the engine's configuration; it is only read.
        device: None for CUDA where there is one, else the CPU.

    Raises:
        ModelLoadError: the model cannot be loaded, or not be served.
        ConfigError: there is no room for its cache, or settings contradict each other.
    """
    return resolve(config, _load(config, device, Phases()))[0]


def _load(config: EngineConfig, device: str | torch.device | None, phases: Phases) -> LoadedModel:
    """Load the model, find out how it attends and make its linear layers fast."""
    use_allowed_cores()
    use_huge_pages()
    _check_attention(config, device)
    # The loader fills the length in, which the caller's own configuration must not show.
    own = config.model_config.model_copy(update={"max_model_len": asked_max_model_len(config)})
    loader = ModelLoader(own, phases)
    tokenizer = loader.load_tokenizer(add_padding=False)
    hf_model = loader.load_model(device)
    generation_config = hf_model.generation_config
    model = PagedModel(hf_model)
    needs = _attention_needs(config, model.device, model.dtype, tuple(model.attention))
    attention = find_attention(needs, config.model_config.attention_backend)
    block_size, _ = resolve_block_size(config.cache_config, attention[0])
    check = ModelCheck(model, block_size)
    linear_backends = speed_up_linears(model, config.model_config.linear_backend)
    check.run(attention[0])
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        generation_config=generation_config,
        asked_device=device,
        attention=attention,
        linear_backends=linear_backends,
    )


def speed_up_linears(model: PagedModel, asked: str | None) -> dict[str, int]:
    """Give the linear layers to backends; return how many each computes, by its name."""
    linears = LinearPacker(model.device, asked, model.weights_read)
    if model.device.type == "cpu":
        fuse(model.model, linears.merge)
    linears.pack(model.model)
    return linears.counts


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
    return AttentionNeeds(device, dtype, layers, config.cache_config.asked_block_size)


def _make_cache_manager(setup: EngineSetup) -> KVCacheManager:
    return KVCacheManager(
        setup.num_blocks,
        setup.block_size,
        enable_prefix_caching=setup.enable_prefix_caching,
        num_host_blocks=setup.num_host_blocks,
    )


def _make_runner(setup: EngineSetup, loaded: LoadedModel, maker: GraphMaker | None) -> ModelRunner:
    """Take the memory of the cache, and capture the graphs that read and write it."""
    model = loaded.model
    sampler = Sampler(setup.vocab_size, setup.device, seed=setup.seed)
    cache = KVCache(
        model.layers,
        setup.num_blocks,
        setup.num_host_blocks,
        setup.block_size,
        setup.kv_cache_dtype,
        setup.device,
    )
    if setup.device.type == "cpu":
        keep_freed_memory()  # from here on: what loading freed is better given back
    graphs = maker.make(cache.layers) if maker else None
    return ModelRunner(model, cache, loaded.attention[0], sampler, setup.block_size, graphs)
