"""Run by the environment's own Python: says what is installed, and proves that it works."""

from __future__ import annotations

import importlib
import json
import re
import sys
from importlib import metadata


def installed() -> dict[str, str]:
    """Return the installed versions by normalised name."""
    found = {}
    for distribution in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        found[name] = distribution.version
    return found


def try_out(more: list[str]) -> str:
    """Import what a run imports and multiply two matrices; return a line that says so.

    Nothing was compiled on installing, so this compiles what is used, even where the user's
    PYTHONDONTWRITEBYTECODE (containers set it) would have every process compile it again.

    Args:
        more: modules beyond torch, transformers and folovllm; transformers loads its own parts
            only when they are asked for.

    Raises:
        RuntimeError: the product is wrong.
    """
    sys.dont_write_bytecode = False
    names = ("torch", "transformers", "folovllm", *more)
    torch, transformers, folovllm, *_ = map(importlib.import_module, names)
    product = (torch.ones(8, 8) @ torch.ones(8, 8)).sum().item()
    if product != 8**3:
        raise RuntimeError(f"torch multiplies wrongly: {product} instead of {8**3}")
    return (
        f"torch {torch.__version__}, transformers {transformers.__version__} and "
        f"{folovllm.__name__} import; torch multiplies matrices"
    )


if __name__ == "__main__":
    if sys.argv[1] == "installed":
        print(json.dumps(installed()))
    else:
        print(try_out(sys.argv[2:]))
