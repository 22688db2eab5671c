"""The engine's options on the command line, made from the configuration classes."""

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from folovllm.config import ENGINE_CLASSES, EngineConfig, ModelConfig, RuntimeConfig
from folovllm.config.settings import Settings
from folovllm.config.sources import variable_of
from folovllm.errors import ConfigError
from folovllm.loading.default_model import demo_model_path, ensure_demo_model

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from folovllm.llm import LLM


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> argparse.ArgumentParser:
    """Add a subcommand that takes the engine's options.

    Args:
        commands: what `ArgumentParser.add_subparsers` returned.
        name: what the user types.
        text: what it does, for the help.
    """
    parser = add_plain_command(commands, name, text)
    add_settings(parser, ENGINE_CLASSES.values())
    return parser


def add_plain_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> argparse.ArgumentParser:
    """Add a subcommand that needs no engine; the arguments are those of `add_command`."""
    # An abbreviated option would change its meaning when a longer one is added.
    return commands.add_parser(
        name, help=text, description=text[:1].upper() + text[1:] + ".", allow_abbrev=False
    )


def add_settings(
    parser: "argparse.ArgumentParser", classes: Iterable[type[Settings]], prefix: str = ""
) -> None:
    """Add one option for each field of configuration classes.

    Values stay text here: the configuration classes check them, so that an option and a
    variable are judged by the same rule and explained in the same words.

    Args:
        parser: what to add them to.
        classes: whose fields.
        prefix: of their names, which the options go without: `bench_rounds` is `--rounds`.
    """
    added: set[str] = set()
    for cls in classes:
        group = parser.add_argument_group(*_title(cls))
        for name, field in cls.model_fields.items():
            if name in added:  # max_model_len is in two classes, and goes to both
                continue
            added.add(name)
            flag, how = option_of(name, field, prefix)
            group.add_argument(flag, **how)


def option_of(name: str, field: "FieldInfo", prefix: str = "") -> tuple[str, dict[str, Any]]:
    """The option of a configuration field: its flag, and what `add_argument` takes beside it."""
    text = f"{field.description} [{variable_of(name)}]".replace("%", "%%")
    how: dict[str, Any] = {"dest": name, "default": None, "help": text}
    if field.annotation is bool:
        how["action"] = argparse.BooleanOptionalAction
    else:
        how["metavar"] = "VALUE"
    return "--" + name.removeprefix(prefix).replace("_", "-"), how


def _title(cls: type[Settings]) -> tuple[str, str | None]:
    summary = (cls.__doc__ or "").splitlines()[0]
    return cls.__name__, summary


def engine_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The engine options that were really given, by field name."""
    return given_options(arguments, ENGINE_CLASSES.values())


def given_options(
    arguments: argparse.Namespace, classes: Iterable[type[Settings]]
) -> dict[str, Any]:
    """The options of configuration classes that were really given, by field name."""
    fields = {name for cls in classes for name in cls.model_fields}
    return {
        name: value
        for name, value in vars(arguments).items()
        if name in fields and value is not None
    }


def planned_config(arguments: argparse.Namespace) -> EngineConfig:
    """The configuration that a command would run with, the default model's included."""
    options = engine_options(arguments)
    if "model" not in options and "model" not in ModelConfig.find_in_environment():
        options["model"] = str(demo_model_path())
    return EngineConfig.from_options(**options)


def runnable_config(arguments: argparse.Namespace) -> EngineConfig:
    """The configuration to run with; when it comes to that, the default model is fetched.

    Raises:
        ModelLoadError: the default model is needed and cannot be had.
    """
    # torch, which comes next, imports it as well and drops a Ctrl-C meanwhile: then half of it is
    # there, and the first use of it ends in a recursion.
    import numpy  # noqa: F401, ICN001

    config = planned_config(arguments)
    if _is_default(config.model_config.model):
        ensure_demo_model()
    return config


def _is_default(model: str) -> bool:
    try:
        return model == str(demo_model_path())
    except ConfigError:  # there is no place for the default model, so another was asked for
        return False


def load_llm(arguments: argparse.Namespace) -> "LLM":
    """The model to run with, for commands whose output is its text.

    Raises:
        ConfigError: the configuration is wrong.
        ModelLoadError: the model cannot be loaded, or not be served.
    """
    config = runnable_config(arguments)
    quieten_log()
    with say_loading(config.model_config.model):
        from folovllm.llm import LLM

        return LLM.from_config(config)


def quieten_log() -> None:
    """Log warnings alone from here on, unless a level was asked for.

    What the engine has to say every few seconds would stand in the middle of the text.
    """
    if "log_level" not in RuntimeConfig.find_in_environment():
        logging.getLogger("folovllm").setLevel(logging.WARNING)


@contextmanager
def say_loading(model: str) -> Iterator[None]:
    """Say on a terminal what takes so long, and take it back afterwards."""
    if not sys.stderr.isatty():
        yield
        return
    sys.stderr.write(f"loading {model} ...")
    sys.stderr.flush()
    try:
        yield
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
