"""Which attention backend serves a model on a device."""

from folovllm.attention.backend import AttentionBackend, AttentionNeeds
from folovllm.attention.flash import FlashBackend
from folovllm.attention.sdpa import SdpaBackend
from folovllm.attention.triton import TritonBackend
from folovllm.errors import ConfigError

BACKENDS: tuple[AttentionBackend, ...] = (FlashBackend(), TritonBackend(), SdpaBackend())
"""In the order in which they are tried. Making one costs nothing: what it needs is imported when
it is first used."""


def find_backend(needs: AttentionNeeds, asked: str | None) -> tuple[AttentionBackend, str]:
    """The backend that was asked for, else the first that serves, and why it is that one.

    Backends that need not be asked are not: it may take importing what they need.

    Args:
        needs: what the model on its device asks for.
        asked: `ModelConfig.attention_backend`.

    Raises:
        ConfigError: the one that was asked for cannot serve; the message says which could.
    """
    passed: list[str] = []
    for backend in BACKENDS:
        if asked not in {None, backend.name}:
            continue
        why = backend.refusal(needs)
        if why is None:
            return backend, "asked for" if asked else "; ".join(passed) or "the first choice"
        passed.append(f"{backend.name} {why}")
    able = " or ".join(one.name for one in BACKENDS if one.refusal(needs) is None)
    raise ConfigError(f"attention_backend: {'; '.join(passed)}; {able} can serve here")
