"""The `folovllm` command: its subcommands, and what becomes of their errors.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted (Ctrl-C).
"""

import sys

TYPE_CHECKING = False  # as type checkers know it, without importing `typing`
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

# Everything else is imported inside `main`, so that Ctrl-C meets its `except` from the start.

INTERRUPTED = 130
"""As a shell has it: 128 + SIGINT."""


def main(argv: "Sequence[str] | None" = None) -> int:
    """Run the command line and return its exit code; a user's error never shows a traceback."""
    before, sys.unraisablehook = sys.unraisablehook, _end_if_interrupted
    try:
        return _main(argv)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    finally:
        sys.unraisablehook = before


def _end_if_interrupted(unraisable: "sys.UnraisableHookArgs") -> None:
    """End at once when Ctrl-C came where Python cannot raise it and would go on.

    That is in callbacks, such as those that the import system has for its locks.
    """
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    import os

    _fail("interrupted", INTERRUPTED)
    sys.stdout.flush()
    os._exit(INTERRUPTED)


def _main(argv: "Sequence[str] | None") -> int:
    # pydantic's compiled part imports it and turns a Ctrl-C meanwhile into a panic of its own.
    import datetime  # noqa: F401, ICN001
    import errno

    from folovllm.errors import ConfigError, FoloVLLMError

    _prepare_streams()
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # here, where a closed pipe or a full disk is still ours to handle
    except ConfigError as error:
        return _fail(error, 2)
    except FoloVLLMError as error:
        return _fail(error, 1)
    except BrokenPipeError:
        # The reader of a pipe (`folovllm config | head`) has what it wanted.
        _discard_output()
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _discard_output()
        return _fail("the disk is full: the output could not be written", 1)


def _prepare_streams() -> None:
    """Open what our caller closed (`>&-`): Python has None there. Let any text be written."""
    import io
    import os

    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - open for good
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A model may write what the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="replace")


def _discard_output() -> None:
    """Send what is left to nowhere; Python would complain again when it flushes at exit."""
    import os

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _run(argv: "Sequence[str] | None") -> int:
    arguments = _parser().parse_args(argv)
    from folovllm.config import CONFIG_CLASSES, RuntimeConfig
    from folovllm.config.settings import check_variables
    from folovllm.utils.logging import set_up_logging

    set_up_logging(RuntimeConfig().log_level)
    check_variables(CONFIG_CLASSES)
    return int(arguments.run(arguments))


def _parser() -> "argparse.ArgumentParser":
    import argparse

    from folovllm import __version__
    from folovllm.cli import bench, chat, config, demo, env, generate, verify, verify_cuda

    parser = argparse.ArgumentParser(
        prog="folovllm",
        description="LLM inference that follows vLLM. Every option is also an environment "
        "variable: --block-size is FOLOVLLM_BLOCK_SIZE.",
    )
    parser.add_argument("--version", action="version", version=f"folovllm {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (config, env, verify, verify_cuda, demo, generate, chat, bench):
        command.add_parser(commands)
    return parser


def _fail(error: object, code: int) -> int:
    sys.stderr.write(f"folovllm: {error}\n")
    return code
