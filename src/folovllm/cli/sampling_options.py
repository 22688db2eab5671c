"""`SamplingParams` on the command line: an option for each field that makes sense there."""

import argparse
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from folovllm.errors import ConfigError
from folovllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from folovllm.llm import LLM


def _count(text: str) -> int | None:
    return None if text == "none" else int(text)


_HELP: dict[str, tuple[Callable[[str], object], str]] = {
    "max_tokens": (_count, "most tokens to generate; none: up to the model's length"),
    "min_tokens": (int, "tokens to generate before the model may end"),
    "temperature": (float, "0 takes the most likely token, more is more varied"),
    "top_p": (float, "draw from the likeliest tokens that have this probability together"),
    "top_k": (int, "draw from this many of the likeliest tokens; -1: from all"),
    "min_p": (float, "draw from tokens at least this likely, as a share of the likeliest"),
    "presence_penalty": (float, "make tokens that were generated less likely"),
    "frequency_penalty": (float, "the same, for each time that they were"),
    "repetition_penalty": (float, "make tokens of prompt and output less likely; 1: off"),
    "n": (int, "texts for each prompt"),
    "best_of": (int, "texts to generate, of which the n likeliest are shown"),
    "stop": (str, "end where this text comes; may be given again"),
    "stop_token_ids": (int, "end at this token; may be given again"),
    "bad_words": (str, "never generate this word; may be given again"),
    "ignore_eos": (bool, "go on where the model would end"),
    "include_stop_str_in_output": (bool, "keep the stop text at the end"),
    "skip_special_tokens": (bool, "leave special tokens out of the text"),
    "spaces_between_special_tokens": (bool, "put spaces between special tokens"),
    "logprobs": (int, "with --json: log probabilities of this many tokens at each place"),
    "prompt_logprobs": (int, "with --json: the same for the prompt"),
    "truncate_prompt_tokens": (int, "keep only this many of the prompt's last tokens"),
}
"""How a field is read from text and what it does. `seed` is the engine's option as well, and
taken from there; what is missing besides is of use to programs alone."""

_REPEATED = ("stop", "stop_token_ids", "bad_words")


def add_sampling_options(
    parser: argparse.ArgumentParser, *, max_tokens: int, without: tuple[str, ...] = ()
) -> None:
    """Add the options.

    Args:
        parser: of a subcommand with the engine's options.
        max_tokens: the default for that field.
        without: fields that mean nothing to the subcommand.
    """
    group = parser.add_argument_group(
        "SamplingParams",
        "How tokens are chosen. What is not given is as the model's generation_config.json "
        "recommends. --seed, above, makes a draw repeat.",
    )
    for name in (name for name in _HELP if name not in without):
        _add_option(group, name, max_tokens)


def _add_option(group: "argparse._ArgumentGroup", name: str, max_tokens: int) -> None:
    kind, text = _HELP[name]
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options |= {"type": _reader(kind), "metavar": "VALUE"}
        if name in _REPEATED:
            options["action"] = "append"
    if name == "max_tokens":
        options |= {"default": max_tokens, "help": f"{text} [default: {max_tokens}]"}
    group.add_argument(_flag(name), **options)


def _reader(kind: Callable[[str], object]) -> Callable[[str], object]:
    """Read a value, or leave what cannot be read to `SamplingParams`, which says what it takes."""

    def read(text: str) -> object:
        try:
            return kind(text)
        except ValueError:
            return text

    return read


def check_sampling(arguments: argparse.Namespace) -> None:
    """Refuse wrong values before a model is loaded.

    Raises:
        ConfigError: one is wrong; the message names its option.
    """
    with explain_usage():
        SamplingParams(**_given(arguments))


def sampling_params(arguments: argparse.Namespace, llm: "LLM") -> SamplingParams:
    """What was given, and for the rest what the checkpoint recommends.

    Raises:
        ConfigError: the two contradict each other.
    """
    with explain_usage():
        recommended = llm.get_default_sampling_params()
        return replace(recommended, **_given(arguments))


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    values = {name: value for name, value in vars(arguments).items() if name in _HELP}
    if arguments.seed is not None:  # the engine's, as text
        values["seed"] = _reader(int)(arguments.seed)
    return values


@contextmanager
def explain_usage() -> Iterator[None]:
    """Turn the refusal of a prompt or a parameter into a `ConfigError` that names the option."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        message = re.sub(r"^(prompts\[\d+\]: )?(\w+)", _name_option, str(error), count=1)
        raise ConfigError(message) from error


def _name_option(match: re.Match[str]) -> str:
    place, word = match[1] or "", match[2]
    return place + (_flag(word) if word in {*_HELP, "seed"} else word)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
