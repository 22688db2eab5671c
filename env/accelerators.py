"""The optional accelerators: `nox -s setup -- --with NAME`.

Two kinds. Those that the engine uses go into `.venv`. Those that need other versions than the
locked ones, and that one makes or checks checkpoints with, get an environment of their own.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from env.errors import SetupError

Capability = tuple[int, int]


@dataclass(frozen=True)
class Inside:
    """An accelerator that goes into `.venv`.

    Attributes:
        name: as it is asked for, and the package's name.
        requirement: what pip is asked for.
        capability: the least compute capability that it runs on.
        hardware: the same in words.
        compiles: whether it can be compiled here when there is no wheel.
    """

    name: str
    requirement: str
    capability: Capability
    hardware: str
    compiles: bool = False


@dataclass(frozen=True)
class Apart:
    """An accelerator with an environment of its own, `.venvs/NAME`; `note` says why."""

    name: str
    note: str

    @property
    def asked(self) -> str:
        """The file of what is asked for, relative to the checkout."""
        return f"env/{self.name}.in"

    @property
    def lock(self) -> str:
        """The lock made from it, relative to the checkout."""
        return f"env/{self.name}.lock"


INSIDE = (
    # 2.6 is the first with soft capping beside block tables.
    Inside("flash-attn", "flash-attn>=2.6,<3", (8, 0), "Ampere or later", compiles=True),
)
APART = (
    Apart(
        "auto-gptq",
        "AutoGPTQ is archived, and no current transformers works with it. So it has an\n"
        "environment of its own, with the versions that it does work with. Quantising with it\n"
        "needs a CUDA device; its compiled kernels are for torch 2.2 and not used.",
    ),
    Apart(
        "gptqmodel",
        "GPTQModel pins NumPy and changes process-wide variables when it is imported. So it has\n"
        "an environment of its own: use it to make and to check GPTQ checkpoints.",
    ),
)
TODAY = "FoloVLLM itself does not read GPTQ checkpoints yet; when it does, it will need neither."


def find(name: str) -> Inside | Apart:
    """Return the accelerator of that name.

    Raises:
        SetupError: there is none; names the nearest.
    """
    known: dict[str, Inside | Apart] = {each.name: each for each in (*INSIDE, *APART)}
    normalised = name.lower().replace("_", "-")
    if normalised in known:
        return known[normalised]
    near = difflib.get_close_matches(normalised, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise SetupError(f"There is no accelerator {name!r}.{hint} There are: {', '.join(known)}.")
