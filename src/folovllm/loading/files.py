"""Reading the small files of a checkpoint: only regular ones, and never more than makes sense."""

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from folovllm.errors import ModelLoadError

MAX_BYTES = 1 << 26
"""The largest file that is read whole; the index of the largest model takes a tenth of it."""

_READ = ("*.json", "*.model", "*.txt", "*.jinja", "*.safetensors", "*.bin", "*.gguf", "SHA256SUMS")


def check_regular(folder: Path) -> None:
    """Refuse a folder that holds a pipe, a device or a folder in the place of a file.

    Reading one may never end.

    Raises:
        ModelLoadError: it does, or cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise ModelLoadError(f"the folder {folder} cannot be read: {error}") from error
    for entry in entries:
        if any(fnmatch(entry.name, pattern) for pattern in _READ) and not entry.is_file():
            raise ModelLoadError(
                f"{entry} is no regular file (but a link to nothing, a pipe, a device or a "
                "folder); replace or remove it"
            )


def read_text(path: Path) -> str:
    """Read a small file of text, with or without a byte order mark.

    Raises:
        ModelLoadError: it cannot be read, is too large, or no text.
    """
    try:
        if not path.is_file():
            raise ModelLoadError(f"{path} is no regular file")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ModelLoadError(
                f"{path} is of {size} bytes; FoloVLLM reads at most {MAX_BYTES} of such a file"
            )
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ModelLoadError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error
    except RecursionError as error:
        raise ModelLoadError(f"{path} is nested too deeply; the checkpoint is damaged") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} holds no JSON object; the checkpoint is damaged")
    return content
