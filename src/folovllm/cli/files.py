"""Files that a command is told to write."""

from typing import TYPE_CHECKING

from folovllm.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def check_writable(option: str, path: "Path") -> None:
    """Complain of a wrong file before the work and not after it; leave the file as it is.

    Args:
        option: that named the file, for the message.
        path: the file.

    Raises:
        ConfigError: it cannot be written.
    """
    new = not path.exists()
    try:
        path.open("a", encoding="utf-8").close()
        if new:
            path.unlink()
    except OSError as error:
        raise unwritable(option, path, error) from error


def unwritable(option: str, path: "Path", error: OSError) -> ConfigError:
    """The error of a file that cannot be written."""
    return ConfigError(f"{option} {path} cannot be written: {error}")
