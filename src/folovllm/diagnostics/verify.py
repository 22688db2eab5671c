"""Does this installation really run a model? One check a line, from imports to an answer."""

import math
import platform
from collections.abc import Iterator
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from folovllm.config import EngineConfig
from folovllm.diagnostics.checks import Check, CheckError, chain, run_steps
from folovllm.loading.checksums import check_files
from folovllm.loading.default_model import demo_model_path
from folovllm.model_loader import ModelLoader
from folovllm.outputs import CompletionOutput
from folovllm.sampling_params import SamplingParams
from folovllm.utils.common import get_device

if TYPE_CHECKING:
    from folovllm.llm import LLM
    from folovllm.text.input_processor import PromptType

QUESTION = "What is the capital of France?"
PACKAGES = ("torch", "transformers", "safetensors", "pydantic-settings", "numpy")


class Verification:
    """The checks, in the order in which things break, and the engine that they made.

    Args:
        config: the engine to make and to ask.
    """

    def __init__(self, config: EngineConfig) -> None:
        """Remember the configuration; nothing is loaded yet."""
        self.config = config
        self.loader = ModelLoader(config.model_config)

    def run(self) -> Iterator[Check]:
        """Do the checks, one at a time; after a failure the rest is skipped."""
        return run_steps(
            chain(
                [
                    ("packages", self._packages),
                    ("torch", self._torch),
                    ("device", self._device),
                    ("model files", self._files),
                    ("tokenizer", self._tokenizer),
                    ("model loads", self._load),
                    ("logits", self._logits),
                    ("answer", self._answer),
                ]
            )
        )

    @cached_property
    def llm(self) -> "LLM":
        """The model under test, served by an engine."""
        # What it imports at its top is checked first: a package that is broken is to be a failed
        # check and not a traceback.
        from folovllm.llm import LLM

        return LLM.from_config(self.config)

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
        tokenizer = self.loader.load_tokenizer()
        ids = tokenizer(QUESTION)["input_ids"]
        text = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
        if text != QUESTION:
            raise CheckError(f"{QUESTION!r} comes back as {text!r}; the tokenizer is damaged")
        return f"{type(tokenizer).__name__}, {len(tokenizer)} tokens"

    def _load(self) -> str:
        engine = self.llm.llm_engine
        setup = engine.setup
        return (
            f"{setup.model}: {engine.executor.runner.model.num_parameters / 1e6:.1f} M parameters, "
            f"{str(setup.dtype).removeprefix('torch.')}, up to {setup.max_model_len} tokens"
        )

    def _logits(self) -> str:
        first = self._ask(SamplingParams(temperature=0, max_tokens=1, logprobs=0))
        chosen = (first.logprobs or [{}])[0].get(first.token_ids[0])
        if chosen is None or not math.isfinite(chosen.logprob):
            raise CheckError(f"the first token of an answer has the log probability {chosen}")
        return f"finite; {chosen.decoded_token!r} comes with {math.exp(chosen.logprob):.0%}"

    def _answer(self) -> str:
        text = self._ask(SamplingParams(temperature=0, max_tokens=16)).text.strip()
        if "\ufffd" in text or not any(map(str.isalnum, text)):
            raise CheckError(f"{QUESTION!r} is answered with {text!r}, which is no text")
        if Path(self.config.model_config.model) == demo_model_path() and "Paris" not in text:
            raise CheckError(f"{QUESTION!r} is answered with {text!r}; it should name Paris")
        return f"{QUESTION} {text}"

    def _ask(self, params: SamplingParams) -> CompletionOutput:
        prompt = question_prompt(self.llm, QUESTION)
        [output] = self.llm.generate(prompt, params, use_tqdm=False)
        if output.error is None:
            return output.outputs[0]
        advice = ""
        if "logits" in output.error:
            dtype = str(self.llm.llm_engine.setup.dtype).removeprefix("torch.")
            advice = (
                ": the weights are damaged, or their numbers are too large for "
                f"{dtype}; try FOLOVLLM_DTYPE=float32"
            )
        raise CheckError(output.error + advice)


def question_prompt(llm: "LLM", question: str) -> "PromptType":
    """A user's question as a prompt, in the chat template if there is one."""
    if not llm.get_tokenizer().chat_template:
        return question
    return llm.preprocess_chat([{"role": "user", "content": question}])[0]
