"""Which attention backend serves a model on a device."""

import logging

from folovllm.attention.backend import AttentionBackend, AttentionNeeds
from folovllm.attention.sdpa import SdpaBackend
from folovllm.attention.triton import TritonBackend
from folovllm.errors import ConfigError

logger = logging.getLogger(__name__)

BACKENDS: tuple[AttentionBackend, ...] = (TritonBackend(), SdpaBackend())
"""In the order in which they are tried. Making one costs nothing: what it needs is imported when
it is first used."""


def choose_backend(needs: AttentionNeeds, asked: str | None) -> AttentionBackend:
    """The backend that was asked for, else the first that serves; logged with its reason.

    Args:
        needs: what the model on its device asks for.
        asked: `ModelConfig.attention_backend`.

    Raises:
        ConfigError: the one that was asked for cannot serve; the message says which could.
    """
    refusals = {backend.name: backend.refusal(needs) for backend in BACKENDS}
    serving = [backend for backend in BACKENDS if refusals[backend.name] is None]
    if asked is None:
        chosen = serving[0]
    elif refusals[asked] is None:
        chosen = next(backend for backend in serving if backend.name == asked)
    else:
        names = " or ".join(backend.name for backend in serving)
        raise ConfigError(f"attention_backend: {asked} {refusals[asked]}; {names} can serve here")
    passed = [f"{name} {why}" for name, why in refusals.items() if why is not None]
    reason = "asked for" if asked else "; ".join(passed) or "the first choice"
    logger.info("attention is computed by the %s backend (%s)", chosen.name, reason)
    return chosen
