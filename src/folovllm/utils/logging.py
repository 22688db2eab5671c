"""Log messages on a terminal or in a container's log."""

import logging

from rich.console import Console
from rich.logging import RichHandler


def set_up_logging(level: str) -> None:
    """Show the `folovllm` logger's messages on standard error.

    Only commands call this: a program that uses FoloVLLM as a library sets up its own logging.

    Args:
        level: the least severe level to show, as `logging` names it.
    """
    console = Console(stderr=True)
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, log_time_format="[%X]")
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("folovllm")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False
