"""Configuration: the classes of an engine's settings, and what is made of them."""

from folovllm.config.fields import (
    CONFIG_CLASSES,
    DTYPES,
    ENGINE_CLASSES,
    BenchConfig,
    CacheConfig,
    EngineConfig,
    ModelConfig,
    RuntimeConfig,
    SchedulerConfig,
)

__all__ = [
    "CONFIG_CLASSES",
    "DTYPES",
    "ENGINE_CLASSES",
    "BenchConfig",
    "CacheConfig",
    "EngineConfig",
    "ModelConfig",
    "RuntimeConfig",
    "SchedulerConfig",
]
