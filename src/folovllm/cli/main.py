"""The `folovllm` command: its subcommands, and what becomes of their errors.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted (Ctrl-C).
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from folovllm import __version__
from folovllm.errors import ConfigError, FoloVLLMError

INTERRUPTED = 128 + signal.SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; a user's error never shows a traceback."""
    try:
        return _run(argv)
    except ConfigError as error:
        return _fail(error, 2)
    except FoloVLLMError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe (`folovllm config | head`) has what it wanted. Python would
        # complain again when it flushes at exit, so standard output goes nowhere from here.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    from folovllm.config import CONFIG_CLASSES, RuntimeConfig
    from folovllm.settings import check_variables
    from folovllm.utils.logging import set_up_logging

    check_variables(CONFIG_CLASSES)
    set_up_logging(RuntimeConfig().log_level)
    code = arguments.run(arguments)
    sys.stdout.flush()  # here, where a closed pipe is still ours to handle
    return int(code)


def _parser() -> argparse.ArgumentParser:
    from folovllm.cli import config, demo, verify

    parser = argparse.ArgumentParser(
        prog="folovllm",
        description="LLM inference that follows vLLM. Every option is also an environment "
        "variable: --block-size is FOLOVLLM_BLOCK_SIZE.",
    )
    parser.add_argument("--version", action="version", version=f"folovllm {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (config, verify, demo):
        command.add_parser(commands)
    return parser


def _fail(error: object, code: int) -> int:
    sys.stderr.write(f"folovllm: {error}\n")
    return code
