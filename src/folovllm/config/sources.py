"""The `FOLOVLLM_` variables in reach: those of the process and those of a `.env` file.

Here is only what stands where. Which variables there may be, and what their values may be, is
said in `folovllm.config.settings` and `folovllm.config`.
"""

import io
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import Binding, Original, parse_stream

from folovllm.errors import ConfigError

PREFIX = "FOLOVLLM_"
ENV_FILE = f"{PREFIX}ENV_FILE"


@dataclass(frozen=True)
class Found:
    """A value of the environment, and where it was found.

    Attributes:
        value: the text as it stood there.
        variable: the variable's name.
        file: the `.env` file it stood in; None for a real environment variable.
        line: its line in that file, counted from 1.
    """

    value: str
    variable: str
    file: Path | None = None
    line: int | None = None

    @property
    def origin(self) -> str:
        """For people: `variable FOLOVLLM_DTYPE`, or `.env:3 FOLOVLLM_DTYPE`."""
        if self.file is None:
            return f"variable {self.variable}"
        return f"{self.file}:{self.line} {self.variable}"


def variable_of(field: str) -> str:
    """The environment variable of a configuration field."""
    return PREFIX + field.upper()


def read_environment() -> dict[str, Found]:
    """Every FOLOVLLM_ variable in reach; a real variable wins over one in `.env`.

    Names are compared without regard to case, as pydantic-settings does; where two differ in
    nothing else, the one in capitals counts.

    Raises:
        ConfigError: the `.env` file cannot be read, or a line of it that is ours has no meaning.
    """
    real = {
        name.upper(): Found(os.environ[name], name)
        for name in sorted(os.environ, reverse=True)  # small letters first, overwritten then
        if name.upper().startswith(PREFIX)
    }
    return {**_read_env_file(real.get(ENV_FILE)), **real}


def _read_env_file(named: Found | None) -> dict[str, Found]:
    """The FOLOVLLM_ variables of the `.env` file; keys of other programs are left alone."""
    path = Path(".env")
    if named is not None:
        path = Path(filled("env_file", named)).expanduser()
    elif not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig") as stream:  # Windows editors put a BOM first
            bindings = list(parse_stream(stream))
    except (OSError, UnicodeDecodeError) as error:
        source = f"{named.origin} names {path}, which" if named else str(path)
        raise ConfigError(f"{source} cannot be read: {error}") from error
    # Parsed again for the values, in which `${NAME}` is filled in; without the lines that have
    # no meaning, of which python-dotenv would warn each time.
    good = [binding for binding in bindings if not binding.error]
    text = "".join(binding.original.string for binding in good)
    values = dotenv_values(stream=io.StringIO(text))
    _refuse_broken_lines(path, bindings)
    found = {
        binding.key.upper(): Found(
            values[binding.key] or "", binding.key, path, _line_of(binding.original)
        )
        for binding in good
        if binding.key and binding.key.upper().startswith(PREFIX)
    }
    if other := found.get(ENV_FILE):
        raise ConfigError(f"{other.origin} has no effect in the file that is read; remove it")
    return found


def _refuse_broken_lines(path: Path, bindings: Iterable[Binding]) -> None:
    """Refuse a line about a variable of ours that cannot be read, rather than pass over it."""
    for binding in bindings:
        text = binding.original.string.strip()
        name = re.match(rf"(?:export\s+)?['\"]?({PREFIX}\w*)", text, re.IGNORECASE)
        if binding.error and name:
            raise ConfigError(
                f"{path}:{_line_of(binding.original)} {name[1]}: the line cannot be read; write "
                f"{name[1]}=value, with both quotation marks or none"
            )


def _line_of(original: Original) -> int:
    """The line of a `.env` entry; the parser counts the blank lines before it as part of it."""
    text = original.string
    blank = text[: len(text) - len(text.lstrip())]
    return original.line + blank.count("\n")


def filled(field: str, found: Found) -> str:
    """The value, unless there is none: nobody means an empty one."""
    if not found.value.strip():
        raise ConfigError(
            f"{field}: {found.origin} is set but empty; give it a value, or remove it to take "
            "the default"
        )
    return found.value


def secret_file_variable(field: str) -> str:
    """The variable that names a file holding the secret, as containers mount them."""
    return variable_of(field) + "_FILE"


def read_secret(field: str, found: Found | None, named: Found | None) -> Found | None:
    """A secret given by its variable, or by the file that its `_FILE` variable names."""
    if named is None:
        return found
    if found is not None:
        raise ConfigError(
            f"{field}: {found.origin} and {named.origin} are both set; keep one of them"
        )
    path = Path(filled(field, named)).expanduser()
    try:
        value = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{field}: {named.origin}: the file cannot be read: {error}") from error
    except UnicodeDecodeError:  # its message would show bytes of the secret
        raise ConfigError(f"{field}: {named.origin}: {path} is no UTF-8 text") from None
    if not value:
        raise ConfigError(f"{field}: {named.origin}: the file {path} is empty")
    return replace(named, value=value)
