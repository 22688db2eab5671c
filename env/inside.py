"""Run by the environment's own Python: says what is installed, and proves that it works."""

from __future__ import annotations

import importlib
import json
import platform
import re
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Any


def installed() -> dict[str, str]:
    """Return the installed versions by normalised name."""
    found = {}
    for distribution in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        found[name] = distribution.version
    return found


def facts() -> dict[str, Any]:
    """Return what an accelerator depends on (`env.preflight.Facts` says what each is)."""
    torch = importlib.import_module("torch")
    memory = importlib.import_module("folovllm.machine.memory")
    seen = torch.version.cuda and torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "capability": torch.cuda.get_device_capability(0) if seen else None,
        "headers": (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file(),
        "memory": memory.available_memory(),
    }


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
    elif sys.argv[1] == "facts":
        print(json.dumps(facts()))
    else:
        print(try_out(sys.argv[2:]))
