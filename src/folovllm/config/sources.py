"""The `FOLOVLLM_` variables in reach: those of the process and those of a `.env` file.

Here is only what stands where. Which variables there may be, and what their values may be, is
said in `folovllm.config.settings` and `folovllm.config`.
"""

import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from folovllm.config.env_file import Entry, expand, read_entries
from folovllm.config.foreign import foreign_variables
from folovllm.errors import ConfigError
from folovllm.utils.files import (
    MIB,
    UnusableFileError,
    expand_user,
    read_text_again,
)

PREFIX = "FOLOVLLM_"
ENV_FILE = f"{PREFIX}ENV_FILE"

LARGEST_ENV_FILE = 16 * MIB
LARGEST_SECRET = MIB // 16
"""Bytes of a `.env` file and of a file with a secret: more is some other file."""

LONGEST_SHOWN = 200
"""Characters of a name or a value in a message."""


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
        name = abridged(self.variable)
        return f"variable {name}" if self.file is None else f"{self.file}:{self.line} {name}"


def abridged(text: str) -> str:
    """The text, or the beginning and the end of one that is too long to be shown."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[:100]}...{text[-50:]}"


def variable_of(field: str) -> str:
    """The environment variable of a configuration field."""
    return PREFIX + field.upper()


def read_environment() -> dict[str, Found]:
    """Every FOLOVLLM_ variable in reach; a real variable wins over one in `.env`.

    Names are compared without regard to case, as pydantic-settings does; where two differ in
    nothing else, the one in capitals counts. Variables that Kubernetes and Docker make for a
    service with our name are left out.

    Raises:
        ConfigError: the `.env` file cannot be read, or a line of it that is ours has no meaning.
    """
    names = [name for name in os.environ if name.upper().startswith(PREFIX)]
    foreign = foreign_variables({name: os.environ[name] for name in names}) - {ENV_FILE}
    real = {
        name.upper(): Found(os.environ[name], name)
        for name in sorted(names, reverse=True)  # small letters first, overwritten then
        if name not in foreign
    }
    return {**_read_env_file(real.get(ENV_FILE)), **real}


def _read_env_file(named: Found | None) -> dict[str, Found]:
    """The FOLOVLLM_ variables of the `.env` file; keys of other programs are left alone."""
    path = Path(".env")
    if named is not None:
        path = Path(filled("env_file", named))
    try:
        if named is None and not _is_there(path):
            return {}
        path = expand_user(path)
        entries = read_entries(read_text_again(path, LARGEST_ENV_FILE), PREFIX)
    except UnusableFileError as error:
        source = f"{named.origin} names {path}, which" if named else str(path)
        raise ConfigError(f"{source} cannot be read: {error}") from error
    _refuse_broken_entries(path, entries)
    found = _find_ours(path, entries)
    if other := found.get(ENV_FILE):
        raise ConfigError(f"{other.origin} has no effect in the file that is read; remove it")
    return found


def _is_there(path: Path) -> bool:
    """Whether there is such a file; a folder is none: virtual environments may be named `.env`.

    Raises:
        UnusableFileError: that cannot be told.
    """
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UnusableFileError(error.strerror or str(error)) from error


def _find_ours(path: Path, entries: tuple[Entry, ...]) -> dict[str, Found]:
    try:
        return {
            each.key.upper(): Found(each.value or "", each.key, path, each.line)
            for each in expand(entries, os.environ)
            if each.key.upper().startswith(PREFIX)
        }
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _refuse_broken_entries(path: Path, entries: tuple[Entry, ...]) -> None:
    """Refuse a line about a variable of ours that cannot be read, rather than pass over it."""
    for each in entries:
        if each.is_broken:
            raise ConfigError(
                f"{path}:{each.line} {each.key}: the line cannot be read; write "
                f"{each.key}=value, with both quotation marks or none"
            )


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
    path = Path(filled(field, named))
    try:
        value = read_text_again(expand_user(path), LARGEST_SECRET).strip()
    except UnusableFileError as error:
        raise ConfigError(f"{field}: {named.origin}: {path} cannot be read: {error}") from error
    if not value:
        raise ConfigError(f"{field}: {named.origin}: the file {path} is empty")
    return replace(named, value=value)
