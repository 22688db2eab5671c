"""Where `folovllm generate` takes its prompts from."""

import io
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from folovllm.errors import ConfigError
from folovllm.utils.files import MIB, UnusableFileError, read_text

if TYPE_CHECKING:
    from folovllm.llm import LLM
    from folovllm.text.input_processor import PromptType

KEYS = ("prompt", "prompt_token_ids", "messages")

LARGEST_INPUT = 256 * MIB
"""Bytes of a file with prompts, or characters of standard input."""

GivenPrompt = str | Mapping[str, Any]
"""Text, or a dict with one of `KEYS`."""


def read_prompts(texts: list[str], file: str | None) -> list[GivenPrompt]:
    """The prompts of the arguments, of a file or of standard input.

    Args:
        texts: the arguments; `-` is standard input as a whole.
        file: one prompt a line, `-` for standard input; or, with the suffix `.jsonl`, one JSON
            object a line.

    Raises:
        ConfigError: there are none, one is empty, or a file cannot be read.
    """
    if texts and file is not None:
        raise ConfigError("prompts: give them as arguments or by --file, not both")
    if file is not None:
        return _read_file(file)
    if not texts and sys.stdin.isatty():
        raise ConfigError("no prompt: give one as an argument, by --file, or on standard input")
    prompts = [_read_input().removesuffix("\n") if text == "-" else text for text in texts or ["-"]]
    if "" in prompts:
        raise ConfigError("a prompt is empty")
    return list(prompts)


def to_engine(llm: "LLM", prompt: GivenPrompt, *, chat: bool) -> "PromptType":
    """A prompt as `LLM.generate` takes it.

    Args:
        llm: has the chat template.
        prompt: what the user gave.
        chat: whether a text is a user's message in a chat.

    Raises:
        ValueError: the messages cannot be rendered.
    """
    if chat and not isinstance(prompt, str) and "prompt" in prompt:
        prompt = prompt["prompt"]
    if chat and isinstance(prompt, str):
        prompt = {"messages": [{"role": "user", "content": prompt}]}
    if isinstance(prompt, Mapping) and "messages" in prompt:
        return llm.preprocess_chat([prompt["messages"]])[0]
    return prompt


def _read_input() -> str:
    """Standard input as a whole."""
    try:
        text = sys.stdin.read(LARGEST_INPUT + 1)
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input is no text: {error.reason}") from error
    except OSError as error:  # a folder, or a file that cannot be read
        raise ConfigError(f"standard input cannot be read: {error.strerror}") from error
    if len(text) > LARGEST_INPUT:
        raise ConfigError(
            f"standard input is longer than {LARGEST_INPUT >> 20} Mi characters, the most that is "
            "read"
        )
    return text


def _read_file(file: str) -> list[GivenPrompt]:
    if file == "-":
        text = _read_input()
    else:
        try:
            text = read_text(Path(file), LARGEST_INPUT, pipes=True)
        except UnusableFileError as error:
            raise ConfigError(f"--file {file} cannot be read: {error}") from error
    lines = io.StringIO(text)
    prompts = _objects(file, lines) if file.endswith(".jsonl") else _texts(lines)
    if not prompts:
        raise ConfigError(f"--file {file} has no prompts: every line is empty")
    return prompts


def _texts(lines: Iterable[str]) -> list[GivenPrompt]:
    return [text for line in lines if (text := line.rstrip("\n")).strip()]


def _objects(file: str, lines: Iterable[str]) -> list[GivenPrompt]:
    return [
        _parse(f"{file}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()
    ]


def _parse(place: str, line: str) -> GivenPrompt:
    try:
        parsed: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place} is no JSON: {error}") from error
    if not isinstance(parsed, dict) or len(parsed) != 1 or not parsed.keys() <= set(KEYS):
        accepted = ", ".join(map(repr, KEYS))
        raise ConfigError(f"{place} must be a JSON object with one of the keys {accepted}")
    return parsed
