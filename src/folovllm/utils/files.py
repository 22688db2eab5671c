"""Reading and writing small files that a user names, whatever is found under the name.

A name may belong to a folder, a named pipe that nobody writes to, or a device without an end.
Every file is opened without blocking, its kind is checked before it is read, and no more is read
than a limit allows.
"""

import os
import select
import stat
import time
from functools import lru_cache
from pathlib import Path

from folovllm.errors import FoloVLLMError

MIB = 1 << 20

PIPE_SECONDS = 30.0
"""How long to wait for the next bytes of a pipe."""

_BLOCK = 1 << 18

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a pipe",
}


class UnusableFileError(FoloVLLMError, OSError):
    """A file cannot be read or written; the message says why, and leaves the name out."""


def read_bytes(path: Path, limit: int, *, pipes: bool = False) -> bytes:
    """Read a whole file.

    Args:
        path: a regular file, or the null device, which is empty.
        limit: the most bytes that it may have.
        pipes: also read a pipe to its end, as a shell makes it for `<(command)`.

    Raises:
        UnusableFileError: it cannot be opened, is of another kind, or is larger than the limit;
            or nothing was written to the pipe for `PIPE_SECONDS`.
    """
    handle = _open(path, os.O_RDONLY)
    try:
        status = os.fstat(handle)
        is_pipe = stat.S_ISFIFO(status.st_mode)
        if not (stat.S_ISREG(status.st_mode) or (is_pipe and pipes) or _is_null(status)):
            raise UnusableFileError(f"it is {_kind(status)}, not a file")
        if status.st_size > limit:
            raise _too_large(limit)
        return _read(handle, limit, is_pipe=is_pipe)
    except OSError as error:
        raise _explained(error) from error
    finally:
        os.close(handle)


def read_text(path: Path, limit: int, *, pipes: bool = False) -> str:
    """Read a whole file as UTF-8; line ends become newlines, and a byte order mark is left out.

    Raises:
        UnusableFileError: as `read_bytes`, or it is no UTF-8 text. The message shows none of it.
    """
    content = read_bytes(path, limit, pipes=pipes)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableFileError(_undecodable(content, error.start)) from None
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def read_text_again(path: Path, limit: int) -> str:
    """Read a file as `read_text` does, pipes included, any number of times.

    A pipe gives its content once; the process keeps it for the next call.

    Raises:
        UnusableFileError: as `read_text`.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise _explained(error) from error
    if stat.S_ISFIFO(status.st_mode):
        return _read_pipe(path, limit, (status.st_dev, status.st_ino))
    return read_text(path, limit)


@lru_cache(maxsize=8)
def _read_pipe(path: Path, limit: int, _identity: tuple[int, int]) -> str:
    return read_text(path, limit, pipes=True)


def write_text(path: Path, content: str) -> None:
    """Write a text file as UTF-8; into a pipe only if something reads it.

    Raises:
        UnusableFileError: it cannot be written.
    """
    handle = _open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.set_blocking(handle, True)
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(content)
    except OSError as error:
        raise _explained(error) from error


def check_writable(path: Path) -> None:
    """Complain of a file that cannot be written, and leave it as it is.

    A pipe is not opened: its reader would take the end of that for the end of the file.

    Raises:
        UnusableFileError: it cannot be written.
    """
    try:
        is_new = not os.path.lexists(path)
        if not is_new and stat.S_ISFIFO(path.stat().st_mode):
            return
        os.close(_open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
        if is_new:
            path.unlink()
    except (OSError, ValueError) as error:
        raise _explained(error) from error


def expand_user(path: Path) -> Path:
    """Return the path with `~` and `~name` replaced by the home folder.

    Raises:
        UnusableFileError: there is no such user, or no home folder is known.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        why = f"there is no home folder for {path.parts[0]}"
        raise UnusableFileError(f"{why}; write the path without ~") from error


def _open(path: Path, flags: int) -> int:
    try:
        # A terminal that is opened must not become this process's own.
        extra = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY if os.name == "posix" else 0
        return os.open(path, flags | extra, 0o666)
    except (OSError, ValueError) as error:  # ValueError: a NUL or a surrogate in the name
        raise _explained(error) from error


def _read(handle: int, limit: int, *, is_pipe: bool) -> bytes:
    blocks: list[bytes] = []
    size = 0
    while True:
        if is_pipe:
            _wait_for_bytes(handle)
        try:
            block = os.read(handle, min(_BLOCK, limit + 1 - size))
        except BlockingIOError:  # another reader of the pipe was faster
            continue
        if not block:
            return b"".join(blocks)
        blocks.append(block)
        size += len(block)
        if size > limit:
            raise _too_large(limit)


def _wait_for_bytes(handle: int) -> None:
    """Wait until a pipe has bytes or has ended; one that nobody has opened yet has neither."""
    end = time.monotonic() + PIPE_SECONDS
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    while (left := end - time.monotonic()) > 0:
        if poll.poll(left * 1000):
            return
    raise UnusableFileError(f"it is a pipe, and nothing was written to it for {PIPE_SECONDS:g} s")


def _is_null(status: os.stat_result) -> bool:
    """Whether it is the null device, which people name where they want no file."""
    try:
        return os.path.samestat(status, Path(os.devnull).stat())
    except OSError:
        return False


def _kind(status: os.stat_result) -> str:
    return _KINDS.get(stat.S_IFMT(status.st_mode), "of an unknown kind")


def _too_large(limit: int) -> UnusableFileError:
    size = f"{limit // MIB} MiB" if limit >= MIB else f"{limit // 1024} KiB"
    return UnusableFileError(f"it is larger than {size}, the most that is read")


def _undecodable(content: bytes, place: int) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "it is UTF-16 text; save it as UTF-8"
    return f"it is no UTF-8 text (byte {place + 1} is none)"


def _explained(error: Exception) -> UnusableFileError:
    if isinstance(error, UnusableFileError):
        return error
    return UnusableFileError(getattr(error, "strerror", None) or str(error))
