"""Files that a command is told to write."""

from typing import TYPE_CHECKING

from folovllm.errors import ConfigError
from folovllm.utils import files

if TYPE_CHECKING:
    from pathlib import Path


def check_writable(option: str, path: "Path | None") -> None:
    """Complain of a wrong file before the work and not after it; leave the file as it is.

    Args:
        option: that named the file, for the message.
        path: the file; None where none was named.

    Raises:
        ConfigError: it cannot be written.
    """
    if path is None:
        return
    try:
        files.check_writable(path)
    except files.UnusableFileError as error:
        raise unwritable(option, path, error) from error


def unwritable(option: str, path: "Path", error: OSError) -> ConfigError:
    """The error of a file that cannot be written."""
    return ConfigError(f"{option} {path} cannot be written: {error}")
