"""What a GGUF file says of itself, with a record of what was asked for.

A key that nobody asked for may bear on the result: the file is refused by its name, unless the
key is known to be harmless.
"""

from collections.abc import Collection, Mapping
from math import isfinite
from typing import Any

import numpy as np

from folovllm.errors import ModelLoadError
from folovllm.loading.gguf.header import GgufFile

MOST = 1 << 31
"""The largest whole number that describes a model."""


class Keys:
    """The metadata whose names begin alike.

    Args:
        file: the file.
        prefix: how the names begin ("llama.").
    """

    def __init__(self, file: GgufFile, prefix: str) -> None:
        """Nothing was asked for yet."""
        self._path = file.path
        self._prefix = prefix
        self._asked: set[str] = set()
        self._values: dict[str, Any] = {
            key.removeprefix(prefix): value
            for key, value in file.metadata.items()
            if key.startswith(prefix)
        }

    def __contains__(self, key: str) -> bool:
        """Tell whether the file has a key."""
        return key in self._values

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """Return a whole number.

        Args:
            key: its name, without the prefix.
            default: what it is where the file is silent; None requires it.
            least: the smallest that makes sense.

        Raises:
            ModelLoadError: it is missing, something else, or too small or large.
        """
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < MOST:
            raise self._wrong(key, f"a whole number of at least {least}")
        return value

    def number(self, key: str, default: float | None = None, *, above: float = 0.0) -> float:
        """Return a number above `above`; otherwise as `integer`."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number")
        if not isfinite(value) or value <= above:
            raise self._wrong(key, f"a number above {above:g}")
        return float(value)

    def text(self, key: str, default: str = "") -> str:
        """Return a text."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "a text")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """Return true or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def texts(self, key: str) -> list[str]:
        """Return a list of texts; an empty one where the file has none."""
        value = self._get(key, [])
        if isinstance(value, np.ndarray) and not len(value):
            return []
        if not isinstance(value, list):
            raise self._wrong(key, "a list of texts")
        return value

    def numbers(self, key: str, count: int, default: float) -> list[Any]:
        """Return a list of numbers, as many as `count`; of `default` where the file has none."""
        value = self._get(key, np.full(count, default))
        if not isinstance(value, np.ndarray) or len(value) != count:
            raise self._wrong(key, f"a list of {count} numbers")
        numbers: list[Any] = value.tolist()
        return numbers

    def named(self, beginning: str) -> dict[str, str]:
        """Return the texts whose names go on with `beginning`, by what comes after it."""
        found = [key for key in self._values if key.startswith(beginning)]
        return {key.removeprefix(beginning): self.text(key) for key in found}

    def check_rest(self, harmless: Mapping[str, Collection[Any] | None]) -> None:
        """Refuse the file for a key that nobody asked for.

        Args:
            harmless: keys that change nothing where they have one of these values; None for any.

        Raises:
            ModelLoadError: there is one; the message names it and its value.
        """
        for key in sorted(self._values.keys() - self._asked):
            allowed = harmless.get(key, ())
            if allowed is not None and not (
                np.isscalar(self._values[key]) and self._values[key] in allowed
            ):
                raise ModelLoadError(
                    f"{self._path} says {self._prefix}{key} = {self._show(key)}, which FoloVLLM "
                    "cannot honour; without it the model would give other results. Take the "
                    "model's Hugging Face checkpoint"
                )

    def _get(self, key: str, default: Any) -> Any:
        self._asked.add(key)
        value = self._values.get(key, default)
        if value is None:
            raise ModelLoadError(
                f"{self._path} lacks {self._prefix}{key}; it is incomplete, or no language model"
            )
        return value

    def _wrong(self, key: str, expected: str) -> ModelLoadError:
        return ModelLoadError(
            f"{self._path} says {self._prefix}{key} = {self._show(key)}; expected {expected}"
        )

    def _show(self, key: str) -> str:
        value = self._values.get(key)
        text = repr(value.tolist() if isinstance(value, np.ndarray) else value)
        return text if len(text) <= 60 else f"{text[:57]}..."
