"""Which backend computes a linear layer."""

from torch import nn

from folovllm.errors import ConfigError
from folovllm.linear.onednn import OneDnnBackend
from folovllm.linear.plain import PlainBackend
from folovllm.linear.protocol import LinearBackend, LinearNeeds

BACKENDS: tuple[LinearBackend, ...] = (OneDnnBackend(), PlainBackend())
"""In the order in which they are tried."""


def choose(
    name: str, layer: nn.Linear, needs: LinearNeeds, asked: str | None
) -> tuple[LinearBackend, str]:
    """Return the backend that was asked for, else the first that serves a layer, and why.

    Args:
        name: of the layer in the model.
        layer: as transformers made it.
        needs: where and in which type it is computed.
        asked: `ModelConfig.linear_backend`.

    Raises:
        ConfigError: the one that was asked for cannot compute the layer; the message says which
            could.
    """
    passed: list[str] = []
    for backend in BACKENDS:
        if asked not in {None, backend.name}:
            continue
        why = backend.refusal(name, layer, needs)
        if why is None:
            return backend, "asked for" if asked else "; ".join(passed) or "the first choice"
        passed.append(f"{backend.name} {why}")
    able = " or ".join(one.name for one in BACKENDS if one.refusal(name, layer, needs) is None)
    raise ConfigError(f"linear_backend: {'; '.join(passed)}; {able} can compute {name}")
