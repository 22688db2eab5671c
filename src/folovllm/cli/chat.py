"""`folovllm chat`: a conversation in the terminal, or with a pipe."""

import argparse
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from folovllm.cli.options import add_command, load_llm
from folovllm.cli.sampling_options import (
    add_sampling_options,
    check_sampling,
    explain_usage,
    sampling_params,
)
from folovllm.cli.streaming import Streamed, stream_text
from folovllm.config.settings import nearest
from folovllm.errors import ConfigError, FoloVLLMError
from folovllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from folovllm.llm import LLM

MAX_TOKENS = 1024
COMMANDS = {
    "/reset": "begin a new conversation",
    "/help": "show this",
    "/exit": "end; so does Ctrl-D",
}
_KEYS = "Ctrl-C stops an answer; what there is of it stays in the conversation."
_ONE_TEXT = ("n", "best_of", "logprobs", "prompt_logprobs", "truncate_prompt_tokens")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    text = "talk with a model: in the terminal, or line by line through pipes"
    parser = add_command(commands, "chat", text)
    parser.add_argument("--system", metavar="TEXT", help="tell the model how to behave")
    add_sampling_options(parser, max_tokens=MAX_TOKENS, without=_ONE_TEXT)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Talk until the input ends; 0 unless a line of a pipe got no answer."""
    check_sampling(arguments)
    llm = load_llm(arguments)
    conversation = Conversation(llm, sampling_params(arguments, llm), arguments.system)
    if sys.stdin.isatty() and sys.stdout.isatty():
        _talk(conversation)
        return 0
    return _answer_lines(conversation)


class TurnError(FoloVLLMError):
    """A question got no answer; the conversation is as it was before."""


class Conversation:
    """What was said so far, and who answers.

    Args:
        llm: the model.
        params: how it answers.
        system: how it is to behave; None leaves that to its template.

    Raises:
        ConfigError: the model has no chat template, or it takes no system message.
    """

    def __init__(self, llm: "LLM", params: SamplingParams, system: str | None) -> None:
        """Begin."""
        self._llm = llm
        self._params = params
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self.reset()
        with explain_usage():
            llm.preprocess_chat([*self._opening, {"role": "user", "content": "Hello"}])

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = list(self._opening)

    def ask(self, question: str, is_stopped: Callable[[], bool] = lambda: False) -> str:
        """Write an answer to standard output and keep both in mind.

        Args:
            question: what the user says.
            is_stopped: whether the user has heard enough.

        Returns:
            Why the answer is not whole, if it isn't.

        Raises:
            ValueError: the question cannot be put.
            TurnError: the conversation is too long, or the engine failed.
        """
        messages = [*self.messages, {"role": "user", "content": question}]
        [prompt] = self._llm.preprocess_chat(messages)
        length, limit = len(prompt.token_ids), self._llm.llm_engine.setup.longest_sequence
        if length >= limit:
            begun = self.messages != self._opening
            advice = "/reset begins a new one" if begun else "shorten the question"
            raise TurnError(
                f"the conversation has {length} tokens, with room for an answer the model takes "
                f"{limit - 1}: {advice}"
            )
        answer = stream_text(self._llm, prompt, self._params, is_stopped)
        if answer.last is not None and answer.last.error:
            raise TurnError(answer.last.error)
        if answer.text:
            self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        return _why_cut(answer, length + answer.num_tokens >= limit)


def _why_cut(answer: Streamed, is_full: bool) -> str:
    if answer.last is None or not answer.last.finished:
        return "stopped"
    if answer.last.outputs[0].finish_reason != "length":
        return ""
    if is_full:
        return "cut: the conversation is as long as the model takes; /reset begins a new one"
    return f"cut after {answer.num_tokens} tokens; --max-tokens allows more"


def _talk(conversation: Conversation) -> None:
    """On a terminal: a prompt for each question, until Ctrl-D, `/exit` or Ctrl-C twice."""
    with suppress(ImportError):  # not every Python has it
        import readline  # noqa: F401 - lines can be edited and recalled from here on

    sys.stdout.write("/help lists the commands, Ctrl-D ends\n")
    while (line := _read_line()) is not None and line != "/exit":
        try:
            if line.startswith("/") and _obey(conversation, line):
                continue
            if line:
                with _stop_by_ctrl_c() as is_stopped:
                    note = conversation.ask(line, is_stopped)
                if note:
                    sys.stdout.write(f"[{note}]\n")
        except (ValueError, TurnError) as error:
            sys.stdout.write(f"[{error}]\n")


def _answer_lines(conversation: Conversation) -> int:
    """Through a pipe: an answer to each line."""
    code = 0
    for line in _input_lines():
        try:
            if line == "/exit":
                break
            if line.startswith("/") and _obey(conversation, line):
                continue
            if line:
                conversation.ask(line)
        except (ValueError, TurnError) as error:
            sys.stderr.write(f"folovllm: {error}\n")
            code = 1
    return code


def _obey(conversation: Conversation, line: str) -> bool:
    """Do what a command says; False for a line that only looks like one.

    Raises:
        ValueError: there is no such command.
    """
    if line == "/reset":
        conversation.reset()
    elif line == "/help":
        rows = [f"{name:<8}{text}" for name, text in COMMANDS.items()]
        sys.stdout.write("\n".join([*rows, _KEYS]) + "\n")
    elif re.fullmatch(r"/\w+", line):
        close = nearest(line, COMMANDS) or "; /help lists them"
        raise ValueError(f"there is no command {line}{close}")
    else:
        return False
    return True


def _read_line() -> str | None:
    """The next question; None at the end. Ctrl-C throws the line away, and twice ends all."""
    warned = False
    while True:
        try:
            return input("> ").strip()
        except EOFError:
            sys.stdout.write("\n")
            return None
        except KeyboardInterrupt:
            if warned:
                raise
            warned = True
            sys.stdout.write("\n[Ctrl-C again, Ctrl-D or /exit ends]\n")
        except UnicodeDecodeError as error:
            sys.stdout.write(f"[{error}]\n")


def _input_lines() -> Iterator[str]:
    try:
        for line in sys.stdin:
            yield line.strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input is no text: {error}") from error


@contextmanager
def _stop_by_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Have Ctrl-C only noted, so that it never hits the engine in the middle of a step.

    A second one interrupts as usual, should a step never end.
    """
    is_stopped = False

    def note(_signal: int, _frame: object) -> None:
        nonlocal is_stopped
        if is_stopped:
            raise KeyboardInterrupt
        is_stopped = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: is_stopped
    finally:
        signal.signal(signal.SIGINT, before)
