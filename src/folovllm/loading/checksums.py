"""Are a model's files still the bytes that they were?

Safetensors files carry no checksum: a flipped bit in a weight is a slightly different model, and
nothing can tell. A folder may therefore hold a `SHA256SUMS` file, as the default model's does;
what is noted there is checked.
"""

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

from folovllm.errors import ModelLoadError
from folovllm.loading.files import read_text
from folovllm.utils.progress import progress_bar

_PLAIN = re.compile(r"(?P<digest>[0-9a-fA-F]{64})\s[ *]?(?P<name>.+)")
_TAGGED = re.compile(r"SHA256 ?\((?P<name>.+)\) ?= ?(?P<digest>[0-9a-fA-F]{64})")

CHECKSUMS = "SHA256SUMS"
"""The SHA-256 of the files beside it, as `sha256sum` writes and checks it."""


def write_checksums(folder: Path) -> None:
    """Write the checksum file for all the files of a folder."""
    files = sorted(path for path in folder.iterdir() if path.name != CHECKSUMS)
    lines = [f"{sha256_of(path)}  {path.name}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def check_changed_files(folder: Path) -> None:
    """Check the files that were written after their checksums were.

    Reading all the bytes would take several times as long as loading a mapped model, so an
    unchanged file is trusted here, as `make` trusts it; `folovllm verify` checks every file.

    Raises:
        ModelLoadError: a file is not the one whose checksum is noted.
    """
    sums = folder / CHECKSUMS
    if not sums.is_file():
        return
    noted = sums.stat().st_mtime_ns
    changed = [name for name in _read_checksums(sums) if _mtime(folder / name) > noted]
    if changed:
        check_files(folder, changed)
        with suppress(OSError):  # a read-only folder is checked again the next time
            os.utime(sums)


def check_files(folder: Path, names: list[str] | None = None) -> int:
    """Compare files with their checksums; a folder without checksums passes.

    Args:
        folder: the model's folder.
        names: the files to check; None for all that have a checksum.

    Returns:
        How many files were checked.

    Raises:
        ModelLoadError: a file is missing, or its bytes have changed.
    """
    sums = folder / CHECKSUMS
    if not sums.is_file():
        return 0
    expected = _read_checksums(sums)
    names = list(expected) if names is None else names
    for name in names:
        path = folder / name
        if not path.is_file():
            raise ModelLoadError(f"{path} is missing; remove the folder to have it made again")
        if sha256_of(path) != expected[name]:
            raise ModelLoadError(
                f"{path} is damaged: its SHA-256 is not the one in {CHECKSUMS}; remove the "
                "folder and load the model again"
            )
    return len(names)


def _mtime(path: Path) -> int:
    """When a file was last written; a missing file counts as changed."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 1 << 63


def _read_checksums(path: Path) -> dict[str, str]:
    """Read the lines of `sha256sum` in its usual forms: binary, upper case, with BSD's tags.

    Raises:
        ModelLoadError: a line is none, or names a file elsewhere.
    """
    found = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _PLAIN.fullmatch(line.strip()) or _TAGGED.fullmatch(line.strip())
        name = match["name"].removeprefix("./") if match else ""
        if match is None or Path(name).name != name:
            raise ModelLoadError(
                f"{path}, line {number}, is no SHA-256 of a file beside it: {line[:80]!r}; "
                f"correct or remove {CHECKSUMS}"
            )
        found[name] = match["digest"].lower()
    return found


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, with a progress bar on a terminal."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file, progress_bar(f"checking {path.name}", path.stat().st_size) as bar:
        while block := file.read(1 << 22):
            digest.update(block)
            bar(done := done + len(block))
    return digest.hexdigest()
