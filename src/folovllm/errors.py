"""The errors that FoloVLLM raises on purpose.

Every one of them is also the built-in exception a caller would expect (`ValueError`,
`RuntimeError`), so code that knows nothing of FoloVLLM can still catch it. The command line
prints their message alone, without a traceback: a message says what is wrong, where, and what
to do about it.
"""


class FoloVLLMError(Exception):
    """Base class of every error that FoloVLLM raises on purpose."""


class ConfigError(FoloVLLMError, ValueError):
    """A configuration value is wrong, unknown or missing."""


class ModelLoadError(FoloVLLMError, RuntimeError):
    """A model or tokenizer cannot be loaded from where it was asked for."""
