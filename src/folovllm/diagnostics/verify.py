"""Does this installation really run a model? One check a line, from imports to an answer."""

import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from folovllm.checksums import check_files
from folovllm.config import ModelConfig
from folovllm.demo_model import demo_model_path
from folovllm.errors import FoloVLLMError
from folovllm.model_loader import ModelLoader
from folovllm.utils.common import get_device

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUESTION = "What is the capital of France?"
PACKAGES = ("torch", "transformers", "safetensors", "pydantic-settings", "numpy")


class CheckError(FoloVLLMError):
    """A check found something wrong that raised no error by itself."""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was checked.
        status: "ok", "failed", or "skipped" because an earlier check failed.
        detail: what was found.
        seconds: how long it took.
    """

    name: str
    status: Literal["ok", "failed", "skipped"]
    detail: str
    seconds: float


class Verification:
    """The checks, in the order in which things break, and the model that they loaded.

    Args:
        model_config: the model to load and to ask.
    """

    def __init__(self, model_config: ModelConfig) -> None:
        """Remember the model; nothing is imported or loaded yet."""
        self.model_config = model_config
        self.loader = ModelLoader(model_config)

    def run(self) -> Iterator[Check]:
        """Yield each check's result when it is there; after a failure the rest is skipped."""
        checks: list[tuple[str, Callable[[], str]]] = [
            ("packages", self._packages),
            ("torch", self._torch),
            ("device", self._device),
            ("model files", self._files),
            ("tokenizer", self._tokenizer),
            ("model loads", self._load),
            ("logits", self._logits),
            ("answer", self._answer),
        ]
        failed = ""
        for name, check in checks:
            if failed:
                yield Check(name, "skipped", f"because {failed} failed", 0.0)
                continue
            result = _run(name, check)
            failed = name if result.status == "failed" else ""
            yield result

    @cached_property
    def model(self) -> "PreTrainedModel":
        """The model under test."""
        return self.loader.load_model()

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer."""
        return self.loader.load_tokenizer()

    def _packages(self) -> str:
        import safetensors  # noqa: F401 - that it imports is what is checked
        import transformers  # noqa: F401

        versions = [f"{name} {metadata.version(name)}" for name in PACKAGES]
        return ", ".join([f"Python {platform.python_version()}", *versions])

    def _torch(self) -> str:
        import torch

        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
        product = torch.ones(64, 64) @ torch.ones(64, 64)
        if not bool((product == 64).all()):
            raise CheckError(f"torch {torch.__version__} multiplies matrices wrongly; reinstall it")
        return f"{torch.__version__}, {build}, {torch.get_num_threads()} threads"

    def _device(self) -> str:
        import torch

        device = get_device()
        if device.type == "cuda":
            return f"{device}: {torch.cuda.get_device_name(device)}"
        return f"{device}: {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"

    def _files(self) -> str:
        folder = self.loader.checkpoint.folder
        checked = check_files(folder)
        return f"{folder}, " + (f"{checked} checksums agree" if checked else "without checksums")

    def _tokenizer(self) -> str:
        ids = self.tokenizer(QUESTION)["input_ids"]
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
        if text != QUESTION:
            raise CheckError(f"{QUESTION!r} comes back as {text!r}; the tokenizer is damaged")
        return f"{type(self.tokenizer).__name__}, {len(self.tokenizer)} tokens"

    def _load(self) -> str:
        count, dtype = self.model.num_parameters(), str(self.model.dtype)
        return (
            f"{self.model_config.model}: {count / 1e6:.1f} M parameters, "
            f"{dtype.removeprefix('torch.')}, up to {self.model_config.max_model_len} tokens"
        )

    def _logits(self) -> str:
        import torch

        with torch.inference_mode():
            logits = self.model(self._prompt()).logits
        if not bool(torch.isfinite(logits).all()):
            raise CheckError(
                "the logits hold NaN or infinity: the weights are damaged, or their numbers are "
                f"too large for {self.model.dtype}; try FOLOVLLM_DTYPE=float32"
            )
        return f"finite, from {logits.min().item():.1f} to {logits.max().item():.1f}"

    def _answer(self) -> str:
        import torch

        prompt = self._prompt()
        model: Any = self.model
        with torch.inference_mode():
            tokens = model.generate(prompt, max_new_tokens=16, do_sample=False)
        answer = tokens[0, prompt.shape[1] :]
        text = str(self.tokenizer.decode(answer, skip_special_tokens=True)).strip()
        if "\ufffd" in text or not any(map(str.isalnum, text)):
            raise CheckError(f"{QUESTION!r} is answered with {text!r}, which is no text")
        if Path(self.model_config.model) == demo_model_path() and "Paris" not in text:
            raise CheckError(f"{QUESTION!r} is answered with {text!r}; it should name Paris")
        return f"{QUESTION} {text}"

    def _prompt(self) -> "torch.Tensor":
        return encode_question(self.tokenizer, QUESTION).to(self.model.device)


def _run(name: str, check: Callable[[], str]) -> Check:
    start = time.perf_counter()
    try:
        detail = check()
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the finding
        # Our own errors explain themselves; of others the type helps.
        ours = isinstance(error, FoloVLLMError)
        detail = str(error) if ours else f"{type(error).__name__}: {error}"
        one_line = " ".join(detail.split())
        return Check(name, "failed", one_line, time.perf_counter() - start)
    return Check(name, "ok", detail, time.perf_counter() - start)


def encode_question(tokenizer: "PreTrainedTokenizerBase", question: str) -> "torch.Tensor":
    """A user's question as token ids of shape `[1, length]`, in the chat template if any."""
    import torch

    ids: Any
    if tokenizer.chat_template is None:
        ids = tokenizer(question)["input_ids"]
    else:
        messages = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return torch.tensor([ids])
