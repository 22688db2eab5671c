"""Progress bars and log messages: on a terminal, and on what is none."""

import io
import logging
import os
import pty
import re
import subprocess
import sys
import threading

import pytest

from folovllm.utils.logging import set_up_logging
from folovllm.utils.progress import progress_bar

BAR = """
import time
from folovllm.utils.progress import progress_bar
with progress_bar("downloading it", 1 << 20) as bar:
    for done in range(0, 1 << 20, 1 << 17):
        bar(done)
        time.sleep(0.02)
print("done")
"""

LOG = """
import logging
from folovllm.utils.logging import set_up_logging
set_up_logging("INFO")
logging.getLogger("folovllm.any").warning("[50%%] of what is %s", "here")
"""


@pytest.fixture
def logger():
    logger = logging.getLogger("folovllm")
    before = logger.handlers, logger.level, logger.propagate
    yield logger
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def on_a_terminal(code):
    """Run Python code with a pseudo-terminal as its standard error; what it showed, and said."""
    main_end, terminal = pty.openpty()
    shown = bytearray()

    def read():
        try:
            while block := os.read(main_end, 4096):
                shown.extend(block)
        except OSError:  # Linux's way to say that the other end is closed
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=terminal,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
            timeout=60,
            check=False,
        )
    finally:
        os.close(terminal)  # ends the reader, whatever happened
        reader.join(timeout=10)
        os.close(main_end)
    assert done.returncode == 0, shown.decode()
    return shown.decode(), done.stdout.decode()


def on_a_pipe(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    return done.stderr.decode(), done.stdout.decode()


def test_a_bar_on_a_terminal():
    shown, said = on_a_terminal(BAR)
    assert "downloading it" in shown
    assert "━" in shown
    assert "1.0 MB" in shown
    assert said == "done\n"


def test_the_bar_goes_when_it_is_done():
    shown, _ = on_a_terminal(BAR)
    assert shown.endswith("\x1b[2K")  # the line is erased


def test_nothing_on_a_pipe():
    assert on_a_pipe(BAR) == ("", "done\n")


def test_nothing_where_standard_error_is_no_terminal(monkeypatch):
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    with progress_bar("it", 10) as bar:
        bar(5)
        bar(10)
    assert errors.getvalue() == ""


@pytest.mark.parametrize("terminal", [False, True])
def test_errors_pass_through(terminal, monkeypatch):
    class Errors(io.StringIO):
        def isatty(self):
            return terminal

    monkeypatch.setattr(sys, "stderr", Errors())
    with pytest.raises(KeyboardInterrupt), progress_bar("it", 10):
        raise KeyboardInterrupt


def test_log_lines_on_a_pipe():
    shown, _ = on_a_pipe(LOG)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING \[50%\] of what is here\n", shown
    )


def test_log_lines_on_a_terminal():
    shown, _ = on_a_terminal(LOG)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "WARNING" in plain
    assert "[50%] of what is here" in plain
    assert shown != plain  # coloured


def test_set_up_logging_twice_shows_a_line_once(logger, capsys):
    set_up_logging("INFO")
    set_up_logging("INFO")
    logging.getLogger("folovllm.any").info("once")
    assert capsys.readouterr().err.count("once") == 1


def test_set_up_logging_shows_the_level_and_above(logger, capsys):
    set_up_logging("WARNING")
    logging.getLogger("folovllm.any").info("quiet")
    logging.getLogger("folovllm.any").warning("loud")
    captured = capsys.readouterr()
    assert "quiet" not in captured.err
    assert "loud" in captured.err
    assert captured.out == ""


def test_set_up_logging_leaves_other_loggers_alone(logger):
    root = logging.getLogger()
    before = list(root.handlers), root.level
    set_up_logging("DEBUG")
    assert (list(root.handlers), root.level) == before
    assert not logger.propagate
