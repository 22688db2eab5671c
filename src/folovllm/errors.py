"""The errors that FoloVLLM raises on purpose.

Every one of them is also the built-in exception a caller would expect (`ValueError`,
`RuntimeError`), so code that knows nothing of FoloVLLM can still catch it. The command line
prints their message alone, without a traceback: a message says what is wrong, where, and what
to do about it.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class FoloVLLMError(Exception):
    """Base class of every error that FoloVLLM raises on purpose."""


class ConfigError(FoloVLLMError, ValueError):
    """A configuration value is wrong, unknown or missing."""


class ModelLoadError(FoloVLLMError, RuntimeError):
    """A model or tokenizer cannot be loaded from where it was asked for."""


class EngineDeadError(FoloVLLMError, RuntimeError):
    """The engine met an error that left it in a state in which it cannot go on."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on the host or on a device; CUDA's libraries say so each its way."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate",
    "cannot allocate memory",
    "status_alloc_failed",
)


@contextmanager
def explain_load_errors(what: str) -> Iterator[None]:
    """Turn whatever a library raises over a model's files into a `ModelLoadError`.

    There is no narrower class to catch: transformers, huggingface_hub and tokenizers answer a
    damaged file with errors from `KeyError` to the bare `Exception`.

    Args:
        what: what could not be done, and where: the beginning of the message.

    Raises:
        ModelLoadError: the block raised something; the original error is its cause.
    """
    try:
        yield
    except FoloVLLMError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2])[:300] or type(error).__name__
        raise ModelLoadError(f"{what}: {reason.rstrip('.')}. {_advice(error)}") from error


def _advice(error: Exception) -> str:
    text = str(error).lower()
    if is_out_of_memory(error):
        return "Memory ran out: take a smaller model or data type, or free memory"
    if "no space left" in text:
        return "The disk is full: free some space"
    if isinstance(error, ImportError):
        return "Install the package that it names"
    return "Check that the files are whole and belong together"
