"""`folovllm chat`: through pipes in this process, and in a pseudo-terminal."""

import fcntl
import io
import os
import re
import select
import signal
import subprocess
import sys
import termios
import time

import pytest
import torch
from transformers import LlamaForCausalLM

from folovllm import LLM, SamplingParams
from folovllm.cli.chat import Conversation, TurnError
from folovllm.cli.main import main

pytestmark = pytest.mark.usefixtures("clean_commands")

GREEDY = ("--temperature", "0", "--ignore-eos", "--max-tokens", "4")
PARAMS = SamplingParams(temperature=0, ignore_eos=True, max_tokens=4)


@pytest.fixture
def pipe(monkeypatch, capsys):
    """A function that chats through pipes: exit code, what was written, what was complained of."""

    def talk(lines, *arguments):
        text = io.TextIOWrapper(io.BytesIO("\n".join(lines).encode()), encoding="utf-8")
        monkeypatch.setattr("sys.stdin", text)
        code = main(["chat", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return talk


def answers(model, questions, opening=()):
    """What the model says, by the Python interface."""
    llm, messages, said = LLM(str(model)), list(opening), []
    for question in questions:
        messages.append({"role": "user", "content": question})
        [output] = llm.chat(messages, PARAMS, use_tqdm=False)
        said.append(output.outputs[0].text)
        messages.append({"role": "assistant", "content": said[-1]})
    return said


def test_each_line_of_a_pipe_is_a_turn(chat_model, pipe):
    questions = ["the cat", "a mat"]
    first, second = answers(chat_model, questions)
    assert answers(chat_model, questions[1:]) != [second]  # or the history would prove nothing
    lines = ["the cat", "", "a mat ", "/reset", "the cat", "/exit", "a mat"]
    code, written, complaints = pipe(lines, "--model", chat_model, *GREEDY)
    assert (code, complaints) == (0, [])
    assert written == [first, second, first]


def test_a_system_message_stays_after_a_reset(chat_model, pipe):
    opening = [{"role": "system", "content": "a mat"}]
    (first,) = answers(chat_model, ["the cat"], opening)
    code, written, _ = pipe(
        ["the cat", "/reset", "the cat"], "--model", chat_model, *GREEDY, "--system", "a mat"
    )
    assert (code, written) == (0, [first, first])


def test_a_line_without_an_answer_is_told_and_the_next_one_answered(chat_model, pipe):
    (first,) = answers(chat_model, ["the cat"])
    lines = ["cat " * 300, "/resett", "the cat", "/mat/cat", "mat " * 240, "/reset", "the cat"]
    code, written, complaints = pipe(lines, "--model", chat_model, *GREEDY)
    assert code == 1
    assert len(written) == 3
    assert written[0] == written[2] == first
    assert re.fullmatch(
        r"folovllm: the conversation has 301 tokens, .* takes 255: shorten the question",
        complaints[0],
    )
    assert complaints[1] == "folovllm: there is no command /resett; did you mean /reset?"
    assert complaints[2].endswith("/reset begins a new one")
    assert len(complaints) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--system", "sit"], "the chat template refuses the messages: no system"),
        (["--stop-token-ids", "10"], "--stop-token-ids must be token ids below 10"),
    ],
)
def test_what_no_turn_could_succeed_with(arguments, message, chat_model, pipe):
    code, written, complaints = pipe(["the cat"], "--model", chat_model, *arguments)
    assert written == []
    assert message in complaints[0]
    assert code in (1, 2)


def test_a_model_that_cannot_chat(save_tiny, pipe):
    code, _, complaints = pipe(["the cat"], "--model", save_tiny())
    assert code == 2
    assert "has no chat template" in complaints[-1]


def test_a_failed_answer_is_not_kept(chat_model, capsys):
    model = LlamaForCausalLM.from_pretrained(chat_model)
    with torch.no_grad():
        model.model.embed_tokens.weight[1] = torch.nan  # "cat"
    model.save_pretrained(chat_model)
    conversation = Conversation(LLM(str(chat_model)), PARAMS, None)
    with pytest.raises(TurnError, match="NaN"):
        conversation.ask("the cat")
    assert conversation.messages == []


def test_a_stopped_answer(chat_model, capsys):
    llm = LLM(str(chat_model), max_num_batched_tokens=16)
    conversation = Conversation(llm, PARAMS, None)
    # Before the prompt of 101 tokens is computed: as if it had not been asked.
    asked = iter([False, False, True])
    assert conversation.ask("cat " * 100, lambda: next(asked)) == "stopped"
    assert conversation.messages == []
    asked = iter([False, False, False, True])
    assert conversation.ask("the cat", lambda: next(asked)) == "stopped"
    (said,) = answers(chat_model, ["the cat"])
    kept = conversation.messages[1]["content"]
    assert said.startswith(kept)
    assert len(kept.split()) == 3
    assert not llm.llm_engine.has_unfinished_requests()
    assert capsys.readouterr().out == f"\n{kept}\n"


def test_why_an_answer_is_cut(chat_model, capsys):
    conversation = Conversation(LLM(str(chat_model)), PARAMS, None)
    assert conversation.ask("the cat") == "cut after 4 tokens; --max-tokens allows more"
    conversation.reset()
    note = conversation.ask("mat " * 253)
    assert note == "cut: the conversation is as long as the model takes; /reset begins a new one"


class Terminal:
    """A process in a terminal of its own."""

    def __init__(self, *arguments):
        self.master, slave = os.openpty()

        def attach():
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        self.process = subprocess.Popen(
            [sys.executable, "-m", "folovllm", "chat", *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=attach,  # noqa: PLW1509 - it calls no Python but this
        )
        os.close(slave)
        self.seen = ""

    def send(self, text):
        time.sleep(0.3)  # readline misses a signal that comes before it waits for input
        os.write(self.master, text.encode())

    def expect(self, pattern, seconds=90):
        """Wait for a pattern; what stands before its end is done with."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.master], [], [], deadline - time.monotonic())
            assert ready, f"no {pattern!r} in {self.seen!r}"
            self.seen += os.read(self.master, 4096).decode()
        before, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return before

    def end(self):
        """Wait for the end; its exit code."""
        code = self.process.wait(timeout=30)
        os.close(self.master)
        return code


@pytest.fixture
def terminal(chat_model):
    made = Terminal("--model", chat_model, "--ignore-eos", "--temperature", "0", "--max-tokens=4")
    yield made
    made.process.kill()


@pytest.mark.alone  # see `Terminal.send`: it waits for a time to pass
def test_a_conversation_in_a_terminal(terminal, chat_model):
    first, second = answers(chat_model, ["the cat", "a mat"])
    banner = terminal.expect("> ")
    assert "/help lists the commands" in banner
    assert "INFO" not in banner
    terminal.send("the cat\n")
    assert first in terminal.expect("--max-tokens allows more.*\r\n.*> ")
    terminal.send("a mat\n")
    assert second in terminal.expect("--max-tokens allows more.*\r\n.*> ")
    terminal.send("/help\n")
    assert "/exit" in terminal.expect(r"stays in the conversation\.\r\n.*> ")
    terminal.send("/rest\n")
    terminal.expect("did you mean /reset.*\r\n.*> ")
    terminal.send("/reset\n")
    terminal.expect("> ")
    terminal.send("the dog\x03")  # thrown away
    terminal.expect(r"Ctrl-C again.*\r\n.*> ")
    terminal.send("the cat\n")
    assert first in terminal.expect("--max-tokens allows more.*\r\n.*> ")
    terminal.send("\x04")
    assert terminal.end() == 0


@pytest.mark.alone  # see `Terminal.send`: it waits for a time to pass
def test_ctrl_c_stops_the_answer_and_then_the_program(save_tiny, chat_model):
    """An answer of 100,000 tokens: nobody waits for its end."""
    folder = save_tiny(
        vocab_size=10, max_position_embeddings=100_000, bos_token_id=9, eos_token_id=9
    )
    made = Terminal(
        "--model", folder, "--tokenizer", chat_model, "--ignore-eos", "--max-tokens", "none"
    )
    try:
        made.expect("> ")
        for _ in range(2):
            made.send("the cat\n")
            made.expect(r"the cat\r\n[\w .]{20}")
            made.send("\x03")
            made.expect(r"\[stopped\]\r\n.*> ")
        made.send("\x03")
        made.expect("Ctrl-C again")
        made.expect("> ")
        made.send("\x03")
        made.expect("folovllm: interrupted")
        assert made.end() == 130
    finally:
        made.process.kill()


def test_the_default_model_remembers(demo_model, monkeypatch, pipe):
    monkeypatch.setenv("FOLOVLLM_CACHE_DIR", str(demo_model.parent))
    lines = ["What is the capital of France?", "Of which country did I ask?"]
    code, written, complaints = pipe(lines, "--max-tokens", "24")
    assert (code, complaints) == (0, [])
    assert written[0] == "The capital of France is Paris."
    assert "France" in " ".join(written[1:])
