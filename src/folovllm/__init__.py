"""FoloVLLM: LLM inference that follows vLLM, in a codebase one person can read.

The public names are resolved when first used, so that `import folovllm` takes milliseconds and
does not import torch.
"""

from importlib import import_module

# As type checkers know it. Importing `typing` for it would take longer than all else here, time
# in which Ctrl-C cannot be caught yet.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from folovllm.config import (
        CacheConfig as CacheConfig,
        EngineConfig as EngineConfig,
        ModelConfig as ModelConfig,
        SchedulerConfig as SchedulerConfig,
    )
    from folovllm.engine.async_llm import (
        AsyncLLM as AsyncLLM,
    )
    from folovllm.engine.llm_engine import (
        LLMEngine as LLMEngine,
    )
    from folovllm.errors import (
        ConfigError as ConfigError,
        EngineDeadError as EngineDeadError,
        FoloVLLMError as FoloVLLMError,
        ModelLoadError as ModelLoadError,
    )
    from folovllm.llm import (
        LLM as LLM,
    )
    from folovllm.loading.default_model import (
        ensure_demo_model as ensure_demo_model,
    )
    from folovllm.model_loader import (
        ModelLoader as ModelLoader,
        get_model_and_tokenizer as get_model_and_tokenizer,
    )
    from folovllm.outputs import (
        CompletionOutput as CompletionOutput,
        RequestMetrics as RequestMetrics,
        RequestOutput as RequestOutput,
    )
    from folovllm.request import (
        Request as Request,
        RequestStatus as RequestStatus,
        Sequence as Sequence,
        SequenceData as SequenceData,
        SequenceStatus as SequenceStatus,
    )
    from folovllm.sampling_params import (
        RequestOutputKind as RequestOutputKind,
        SamplingParams as SamplingParams,
        SamplingType as SamplingType,
    )
    from folovllm.utils import (
        generate_request_id as generate_request_id,
        get_device as get_device,
        get_gpu_memory_info as get_gpu_memory_info,
        is_cuda_available as is_cuda_available,
        move_to_device as move_to_device,
        print_gpu_memory_info as print_gpu_memory_info,
        set_random_seed as set_random_seed,
    )

__version__ = "0.1.0"

_MODULE_OF = {
    "CacheConfig": "config",
    "EngineConfig": "config",
    "ModelConfig": "config",
    "SchedulerConfig": "config",
    "ensure_demo_model": "loading.default_model",
    "AsyncLLM": "engine.async_llm",
    "LLMEngine": "engine.llm_engine",
    "ConfigError": "errors",
    "EngineDeadError": "errors",
    "FoloVLLMError": "errors",
    "ModelLoadError": "errors",
    "LLM": "llm",
    "ModelLoader": "model_loader",
    "get_model_and_tokenizer": "model_loader",
    "CompletionOutput": "outputs",
    "RequestMetrics": "outputs",
    "RequestOutput": "outputs",
    "Request": "request",
    "RequestStatus": "request",
    "Sequence": "request",
    "SequenceData": "request",
    "SequenceStatus": "request",
    "RequestOutputKind": "sampling_params",
    "SamplingParams": "sampling_params",
    "SamplingType": "sampling_params",
    "generate_request_id": "utils",
    "get_device": "utils",
    "get_gpu_memory_info": "utils",
    "is_cuda_available": "utils",
    "move_to_device": "utils",
    "print_gpu_memory_info": "utils",
    "set_random_seed": "utils",
}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> object:
    """Import the module that holds a public name, when the name is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'folovllm' has no attribute {name!r}")
    value = getattr(import_module(f"folovllm.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, also those that were not used yet."""
    return sorted({*globals(), *__all__})
