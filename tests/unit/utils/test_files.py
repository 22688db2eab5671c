"""Files of every kind under a name that a user gave."""

import os
import socket
import threading
from pathlib import Path

import pytest

from folovllm.utils import files
from folovllm.utils.files import (
    UnusableFileError,
    check_writable,
    expand_user,
    read_bytes,
    read_text,
    read_text_again,
    write_text,
)

LIMIT = 1024


@pytest.fixture(autouse=True)
def short_wait(monkeypatch):
    monkeypatch.setattr(files, "PIPE_SECONDS", 0.2)


@pytest.fixture
def place(tmp_path):
    """Make a file of a kind and return its path."""

    def make(kind):
        path = tmp_path / "place"
        if kind == "folder":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        elif kind == "zero":
            path.symlink_to("/dev/zero")
        elif kind == "loop":
            path.symlink_to(path)
        elif kind == "null":
            path.symlink_to(os.devnull)
        elif isinstance(kind, bytes):
            path.write_bytes(kind)
        return path

    return make


def refusal(call, *arguments, **options):
    with pytest.raises(UnusableFileError) as caught:
        call(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("folder", "it is a folder, not a file"),
        ("fifo", "it is a pipe, not a file"),
        ("zero", "it is a device, not a file"),
        ("socket", "No such device or address"),
        ("nothing", "No such file or directory"),
        ("loop", "Too many levels of symbolic links"),
        (b"x" * (LIMIT + 1), "it is larger than 1 KiB, the most that is read"),
        (b"caf\xe9", "it is no UTF-8 text (byte 4 is none)"),
        ("a".encode("utf-16"), "it is UTF-16 text; save it as UTF-8"),
    ],
)
def test_refused(kind, message, place):
    assert refusal(read_text, place(kind), LIMIT) == message


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\ud800"])
def test_a_name_that_no_file_has(name):
    for call in (read_text, read_text_again):
        assert refusal(call, Path(name), LIMIT)
    assert refusal(write_text, Path(name), "x")
    assert refusal(check_writable, Path(name))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", ""),
        (b"x" * LIMIT, "x" * LIMIT),
        ("\ufeffä\r\nb\rc\u2028\n".encode(), "ä\nb\nc\u2028\n"),
        ("null", ""),
    ],
)
def test_read(content, text, place):
    assert read_text(place(content), LIMIT) == text


def feed(path, *pieces):
    """Write into a pipe from another thread, piece by piece."""

    def write():
        with path.open("wb", buffering=0) as pipe:
            for piece in pieces:
                pipe.write(piece)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


def test_a_pipe_is_read_to_its_end(place):
    path = place("fifo")
    feed(path, b"one ", b"two")
    assert read_bytes(path, LIMIT, pipes=True) == b"one two"


def test_a_pipe_that_nobody_writes_to(place):
    message = "it is a pipe, and nothing was written to it for 0.2 s"
    assert refusal(read_text, place("fifo"), LIMIT, pipes=True) == message


def test_a_pipe_whose_writer_says_nothing():
    reader, writer = os.pipe()
    path = Path(f"/dev/fd/{reader}")
    assert "nothing was written" in refusal(read_text, path, LIMIT, pipes=True)
    os.close(writer)
    os.close(reader)


def test_an_endless_pipe(place):
    path = place("fifo")
    thread = feed(path, *[b"x" * LIMIT] * 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda _: None)  # the pipe is closed on the writer
        assert "larger than 1 KiB" in refusal(read_text, path, LIMIT, pipes=True)
        thread.join(10)


def test_a_pipe_can_be_read_again(place):
    path = place("fifo")
    feed(path, b"once")
    assert [read_text_again(path, LIMIT) for _ in range(3)] == ["once"] * 3


def test_a_file_that_changes_is_read_anew(place):
    path = place(b"old")
    assert read_text_again(path, LIMIT) == "old"
    path.write_bytes(b"new")
    assert read_text_again(path, LIMIT) == "new"


@pytest.mark.parametrize("kind", ["nothing", b"old and longer", "null"])
def test_write(kind, place):
    path = place(kind)
    check_writable(path)
    assert path.exists() == (kind != "nothing")
    write_text(path, "é\n")
    assert kind == "null" or path.read_bytes() == "é\n".encode()


@pytest.mark.parametrize("kind", ["folder", "socket", "loop"])
def test_what_cannot_be_written(kind, place):
    path = place(kind)
    assert refusal(check_writable, path)
    assert refusal(write_text, path, "x")


def test_a_full_disk(tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")
    check_writable(tmp_path / "full")
    assert refusal(write_text, tmp_path / "full", "x") == "No space left on device"


def test_a_pipe_without_a_reader_is_not_waited_for(place):
    path = place("fifo")
    check_writable(path)
    assert refusal(write_text, path, "x") == "No such device or address"


def test_a_pipe_with_a_reader(place):
    path = place("fifo")
    got = []
    reader = threading.Thread(target=lambda: got.append(path.read_text()), daemon=True)
    reader.start()
    for _ in range(100):
        try:
            write_text(path, "x")
            break
        except UnusableFileError:
            threading.Event().wait(0.05)  # the reader is about to open it
    reader.join(10)
    assert got == ["x"]


def test_homes(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_user(Path("~/x")) == Path("/home/me/x")
    message = "there is no home folder for ~nosuchuser; write the path without ~"
    assert refusal(expand_user, Path("~nosuchuser/x")) == message
