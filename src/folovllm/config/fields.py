"""The configuration of an engine, with vLLM's names and defaults.

Each class reads arguments, then `FOLOVLLM_<FIELD>` variables, then `.env`, then its defaults
(`folovllm.config.settings`). Importing this module does not import torch.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from platformdirs import user_cache_dir
from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from folovllm.config.bench import SUITE_CLASSES
from folovllm.config.settings import Settings, check_variables, nearest
from folovllm.errors import ConfigError
from folovllm.utils.files import UnusableFileError, expand_user

if TYPE_CHECKING:
    from typing import TypeAlias

    import torch

DTYPES = {
    "auto": None,
    "half": "float16",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float": "float32",
    "float32": "float32",
}
"""The names that `ModelConfig.dtype` takes, and the `torch.dtype` each stands for."""


def _check_dtype(value: object) -> object:
    # A torch.dtype prints as "torch.float16"; comparing names needs no import of torch.
    if isinstance(value, str):
        name = value
    elif type(value).__name__ == "dtype" and str(value).startswith("torch."):
        name = str(value).removeprefix("torch.")
    else:
        name = ""
    if name in DTYPES:
        return value
    raise ValueError(f"accepted are {', '.join(DTYPES)}, or the torch.dtype of one of them")


if TYPE_CHECKING:
    DType: TypeAlias = str | torch.dtype
else:
    DType = Annotated[Any, PlainValidator(_check_dtype)]

PositiveInt = Annotated[int, Field(gt=0, le=2**31 - 1)]  # positions and blocks have 32 bits
Gibibytes = Annotated[float, Field(le=2**20)]
# Linux has no longer path (PATH_MAX), and the hub no longer name.
NonEmptyStr = Annotated[str, Field(min_length=1, max_length=4096)]


def _in_capitals(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_in_capitals)]


class ModelConfig(Settings):
    """Which model, from where, and in which data type."""

    model: NonEmptyStr = Field(description="Hub id, local folder or `.gguf` file of the model")
    tokenizer: NonEmptyStr | None = Field(
        None,
        validate_default=True,
        description="Hub id or folder of the tokenizer; unset, the model's own",
    )
    tokenizer_mode: Literal["auto", "slow"] = Field(
        "auto", description="`auto` takes the fast tokenizer, `slow` the Python one"
    )
    trust_remote_code: bool = Field(
        False, description="Allow the checkpoint to run Python code of its own"
    )
    dtype: DType = Field("auto", description=f"Data type of the weights: {', '.join(DTYPES)}")
    max_model_len: PositiveInt | None = Field(
        None,
        description="Longest sequence, prompt and output, in tokens; unset, the checkpoint's",
    )
    seed: Annotated[int, Field(ge=0, lt=2**64)] = Field(
        0, description="Seed of the random generators"
    )
    attention_backend: Literal["flash", "triton", "sdpa"] | None = Field(
        None,
        description="What computes attention: `flash`, `triton` or `sdpa`; unset, what suits the "
        "device",
    )
    linear_backend: Literal["onednn", "plain"] | None = Field(
        None,
        description="What computes linear layers: `onednn` or `plain` (torch's own); unset, what "
        "suits each layer",
    )
    quantization: str | None = Field(
        None, description="Format of quantized weights; there is none yet, so only unset is taken"
    )
    enforce_eager: bool = Field(False, description="Never replay a step as a captured CUDA graph")
    revision: NonEmptyStr | None = Field(None, description="Branch, tag or commit of a hub model")
    hf_token: SecretStr | None = Field(None, description="Access token for gated hub models")

    @field_validator("tokenizer")
    @classmethod
    def _default_to_model(cls, value: str | None, info: ValidationInfo) -> str | None:
        return info.data.get("model") if value is None else value

    @field_validator("quantization")
    @classmethod
    def _know_no_format(cls, value: str | None) -> None:
        if value is not None:
            raise ValueError(
                "there is no quantized format yet; leave it unset, and weights are computed in "
                "float16, bfloat16 or float32"
            )

    @property
    def torch_dtype(self) -> "torch.dtype | None":
        """The wanted `torch.dtype`; None for "auto", which the device decides at load time."""
        import torch

        if isinstance(self.dtype, torch.dtype):
            return self.dtype
        name = DTYPES[self.dtype]
        return None if name is None else getattr(torch, name)


class CacheConfig(Settings):
    """The paged key-value cache."""

    block_size: Annotated[int, Field(gt=0, le=2**20)] = Field(
        16, description="Tokens in a block of the KV cache; unset, `flash` attention takes 256"
    )
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="Share of the GPU's memory to use, above 0 and at most 1"
    )
    cpu_kvcache_space: Annotated[Gibibytes, Field(gt=0)] | None = Field(
        None,
        description="Size of the KV cache on a CPU, in GiB; unset, 4 or half of the free memory",
    )
    num_gpu_blocks_override: PositiveInt | None = Field(
        None, description="Blocks in the KV cache, in place of what memory would allow"
    )
    swap_space: Annotated[Gibibytes, Field(ge=0)] = Field(
        4.0, description="Host memory for swapped-out blocks, in GiB"
    )
    enable_prefix_caching: bool = Field(
        True, description="Keep the KV blocks of a prompt for later prompts that begin alike"
    )

    @property
    def asked_block_size(self) -> int | None:
        """The block size that was asked for; None leaves it to the attention backend.

        vLLM's default of 16 is what `block_size` shows, and is not asked of a backend.
        """
        return self.block_size if "block_size" in self.asked_fields else None


class SchedulerConfig(Settings):
    """How many sequences and tokens run in one step."""

    max_num_batched_tokens: PositiveInt | None = Field(
        None, description="Most tokens in one step; unset, the engine chooses"
    )
    max_num_seqs: Annotated[int, Field(gt=0, le=2**20)] = Field(
        256, description="Most sequences in one step"
    )
    max_model_len: PositiveInt | None = Field(
        None, description="Longest sequence in tokens; unset, the model's"
    )
    enable_chunked_prefill: bool = Field(
        True, description="Spread a long prompt over several steps"
    )
    policy: Literal["fcfs", "priority"] = Field(
        "fcfs", description="Who runs first: first come first served, or by priority"
    )


def _cache_folder() -> Path:
    try:
        return Path(user_cache_dir("folovllm"))
    except RuntimeError:  # no home folder: an error only if the folder is ever used
        return Path("~/.cache/folovllm")


class RuntimeConfig(Settings):
    """The process around the engine: where it reads, writes and reports."""

    env_file: Path = Field(Path(".env"), description="File to read variables from")
    allow_unknown: bool = Field(
        False, description="Warn of unknown `FOLOVLLM_` variables, where they are else refused"
    )
    cache_dir: Path = Field(
        default_factory=_cache_folder,
        description="Folder for the default model; unset, the platform's cache folder",
    )
    log_level: LogLevel = Field("INFO", description="Least severe log messages to show")

    @field_validator("cache_dir")
    @classmethod
    def _know_the_user(cls, value: Path) -> Path:
        """Refuse `~name` of an unknown user here; the default's home is missed when it is used."""
        try:
            if value.parts[:1] != ("~",):
                expand_user(value)
        except UnusableFileError as error:
            raise ValueError(str(error)) from error
        return value


class BenchConfig(Settings):
    """What `folovllm bench` does, beyond the engine that it measures."""

    bench_rounds: Annotated[int, Field(gt=0, le=10**6)] | None = Field(
        None, description="Samples of each case, taken in turn; unset, what suits the benchmark"
    )
    bench_json: Path | None = Field(None, description="File for the raw results")
    bench_html: Path | None = Field(None, description="File for the report, one HTML page")


ENGINE_CLASSES: dict[str, type[Settings]] = {
    "model_config": ModelConfig,
    "cache_config": CacheConfig,
    "scheduler_config": SchedulerConfig,
}
"""The parts of `EngineConfig`, by the attribute that holds each."""

CONFIG_CLASSES: tuple[type[Settings], ...] = (
    *ENGINE_CLASSES.values(),
    RuntimeConfig,
    BenchConfig,
    *SUITE_CLASSES,
)
"""Every class that reads the environment: what they know is what a variable may be named."""


def _model_from_environment() -> ModelConfig:
    # First of all: a misspelt FOLOVLLM_MODEL is to be named as that, not missed as a model.
    check_variables(CONFIG_CLASSES)
    return ModelConfig()


@dataclass
class EngineConfig:
    """Everything an engine is built from.

    A dataclass and not a pydantic model, which reserves the name `model_config`. What is not
    passed is read from the environment, a fresh one for each engine.

    Raises:
        ConfigError: a value is wrong, or a `FOLOVLLM_` variable is unknown.
    """

    model_config: ModelConfig = field(default_factory=_model_from_environment)
    cache_config: CacheConfig = field(default_factory=CacheConfig)
    scheduler_config: SchedulerConfig = field(default_factory=SchedulerConfig)

    def __post_init__(self) -> None:
        """Check types and variables' names, and hand the model's length to the scheduler."""
        for name, cls in ENGINE_CLASSES.items():
            if not isinstance(value := getattr(self, name), cls):
                # Not the value: a mapping of options may hold a secret.
                got = f"{type(value).__name__} object"
                raise ConfigError(f"{name}: got a {got}; it takes a {cls.__name__}")
        check_variables(CONFIG_CLASSES)
        if self.scheduler_config.max_model_len is None:
            # A copy: the caller's object may configure another engine as well.
            self.scheduler_config = self.scheduler_config.model_copy(
                update={"max_model_len": self.model_config.max_model_len}
            )

    @classmethod
    def from_options(cls, **options: Any) -> "EngineConfig":
        """Build the whole tree from flat options, as `LLM(...)` and the command line take them.

        Raises:
            ConfigError: an option is no field of the three classes, or its value is wrong.
        """
        check_variables(CONFIG_CLASSES)
        known = {name for c in ENGINE_CLASSES.values() for name in c.model_fields}
        if unknown := sorted(set(options) - known):
            asked = "; ".join(f"no option {name!r}{nearest(name, known)}" for name in unknown)
            raise ConfigError(f"{asked}; there are {', '.join(sorted(known))}")
        parts: dict[str, Any] = {
            name: c(**{key: value for key, value in options.items() if key in c.model_fields})
            for name, c in ENGINE_CLASSES.items()
        }
        return cls(**parts)
