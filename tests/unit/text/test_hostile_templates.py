"""Templates that do harm on purpose: each ends soon, in a clear error, and harms nobody."""

import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from folovllm.text import template_process
from folovllm.text.chat import ChatRenderer
from folovllm.text.template_process import TemplateProcess, TemplateProcessError
from folovllm.text.template_worker import CPU_SECONDS, MEMORY_BYTES
from tests.unit.text.templates import HARMLESS, HONEST, HOSTILE

USER = {"role": "user", "content": "Hi"}


@pytest.fixture(scope="module")
def renderer(tokenizers):
    return ChatRenderer(tokenizers["words"])


def is_well(renderer):
    return renderer.render([USER], chat_template=HONEST["chatml"]).startswith(
        "<|im_start|>user\nHi"
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(renderer, name):
    assert is_well(renderer)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"^the chat template .*") as caught:
        renderer.render([USER], chat_template=HOSTILE[name])
    assert len(str(caught.value)) < 1000
    assert is_well(renderer)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 50 * 1024  # KB
    # Of processor time it has a second; a busy machine takes more on the wall.
    assert time.monotonic() - begun < template_process.WALL_SECONDS + 10


def test_there_are_enough_of_them():
    assert len(HOSTILE) >= 110


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless(renderer, name):
    renderer.render([USER], chat_template=HARMLESS[name])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce it")
def test_the_kernel_knows_the_limits(renderer):
    assert is_well(renderer)
    worker = renderer._process._worker
    pid = worker.process.pid
    limits = Path(f"/proc/{pid}/limits").read_text()
    [line] = [line for line in limits.splitlines() if line.startswith("Max address space")]
    assert MEMORY_BYTES < int(line.split()[3]) < MEMORY_BYTES + 100 * 2**20
    assert MEMORY_BYTES <= 200 * 2**20
    assert CPU_SECONDS + 1 < 2


@pytest.mark.alone
def test_a_deadline_on_the_wall(renderer, monkeypatch):
    assert is_well(renderer)
    monkeypatch.setattr(template_process, "WALL_SECONDS", 0.05)
    begun = time.monotonic()
    with pytest.raises(ValueError, match="takes longer"):
        renderer.render([USER], chat_template=HOSTILE["three loops"])
    assert time.monotonic() - begun < CPU_SECONDS
    monkeypatch.undo()
    assert is_well(renderer)


def test_threads_take_turns(renderer):
    templates = [HOSTILE["a product of text"], HONEST["chatml"], HOSTILE["division"]] * 5
    ends = []

    def render(template):
        try:
            ends.append(renderer.render([USER], chat_template=template))
        except ValueError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=render, args=(template,)) for template in templates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == len(templates)
    assert sum(end.startswith("<|im_start|>") for end in ends) == 5
    assert sum("more memory" in end for end in ends) == 5


def test_it_ends_with_its_owner():
    process = TemplateProcess()
    assert process.render("{{ x }}", {"x": 1}) == "1"
    child = process._worker.process
    del process
    assert child.wait(timeout=10) is not None


def test_it_ends_with_the_program():
    program = (
        "import os; from folovllm.text.template_process import TemplateProcess\n"
        "process = TemplateProcess(); process.render('a', {})\n"
        "print(process._worker.process.pid, flush=True); os._exit(1)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    for _ in range(100):
        if not Path(f"/proc/{run.stdout.strip()}/cmdline").exists():
            return
        time.sleep(0.1)
    pytest.fail("the process is still there")


def test_one_that_somebody_killed_is_replaced(renderer):
    assert is_well(renderer)
    child = renderer._process._worker.process
    child.kill()
    child.wait()
    assert is_well(renderer)


def test_a_crash_is_told(renderer, monkeypatch):
    assert is_well(renderer)
    worker = renderer._process._worker
    monkeypatch.setattr(worker, "_receive", lambda _seconds: worker.process.terminate())
    monkeypatch.setattr(worker, "end", worker.process.wait)
    with pytest.raises(ValueError, match=r"made the process that renders it end with code -15"):
        is_well(renderer)
    assert is_well(renderer)


def test_it_cannot_be_started(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.executable", str(tmp_path / "nothing"))
    with pytest.raises(TemplateProcessError, match=r"cannot be started: .*No such file"):
        TemplateProcess().render("a", {})
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(TemplateProcessError, match="ended when it was started, with code 1"):
        TemplateProcess().render("a", {})
