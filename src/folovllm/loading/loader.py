"""From a configuration to a Hugging Face model and tokenizer, or to an error that says why not."""

import logging
import time
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from folovllm.config import ModelConfig
from folovllm.errors import ModelLoadError, explain_load_errors
from folovllm.loading.checkpoint import Checkpoint, find_checkpoint
from folovllm.loading.checks import (
    check_config,
    check_generation_config,
    check_tokenizer_files,
)
from folovllm.loading.checksums import check_changed_files
from folovllm.loading.length import checkpoint_length
from folovllm.machine.memory import available_memory
from folovllm.utils.common import get_device
from folovllm.utils.dtypes import choose_dtype
from folovllm.utils.timing import Phases

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

GIB = 1 << 30

CONFIG_AND_TOKENIZER, WEIGHTS_READ = "config and tokenizer", "weights read"
"""The parts of loading that `ModelLoader.phases` is told of."""


class ModelLoader:
    """Loads the model and the tokenizer that a `ModelConfig` names.

    Args:
        model_config: what to load; its `max_model_len` is filled in when it is None.
        phases: is told what is done: "config and tokenizer", "weights read".
    """

    def __init__(self, model_config: ModelConfig, phases: Phases | None = None) -> None:
        """Remember what to load; nothing is read yet."""
        self.model_config = model_config
        self.phases = phases or Phases()

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The model's files; a hub model is downloaded first.

        Raises:
            ModelLoadError: there is no such model, or files of it are missing.
        """
        return find_checkpoint(self.model_config.model, self.model_config.revision, self._token)

    @property
    def _token(self) -> str | None:
        secret = self.model_config.hf_token
        return secret.get_secret_value() if secret else None

    def load_model(self, device: "str | torch.device | None" = None) -> "PreTrainedModel":
        """Load the model in evaluation mode.

        Args:
            device: where to; None for CUDA where there is one, else the CPU.

        Raises:
            ModelLoadError: the model cannot be loaded; the message says why and what to do.
            ConfigError: the device has no such data type.
        """
        start = time.perf_counter()
        target = _device(device)
        config = self._load_config()
        own: Any = config.get_text_config().dtype
        dtype = choose_dtype(self.model_config.torch_dtype, own, target)
        _check_memory(self.checkpoint, target, dtype)
        self.phases.end(CONFIG_AND_TOKENIZER)
        model, way = self._load_weights(config, target, dtype)
        model.eval()
        self._fill_in_length(config)
        self.phases.end(WEIGHTS_READ)
        logger.info(
            "loaded %s: %s parameters in %s on %s, %s in %.2f s",
            self.model_config.model,
            f"{model.num_parameters():,}",
            str(dtype).removeprefix("torch."),
            target,
            way,
            time.perf_counter() - start,
        )
        return model

    def load_tokenizer(self, *, add_padding: bool = True) -> "PreTrainedTokenizerBase":
        """Load the tokenizer, padding on the left, with a padding token.

        Generation continues at the right end of a row, so rows of a batch must end together.

        Args:
            add_padding: choose or add a padding token where the checkpoint names none. The engine
                says False: it never pads, and a token that is added has no row in the model.

        Raises:
            ModelLoadError: there is no tokenizer, or it cannot be read.
        """
        checkpoint, asked = self.checkpoint, self.model_config.tokenizer
        source: str | Path = checkpoint.folder
        if asked not in (None, self.model_config.model):
            source = Path(str(asked)).expanduser()
            if not source.exists():
                source = str(asked)
        elif checkpoint.gguf:
            source = checkpoint.folder / checkpoint.gguf
        with explain_load_errors(f"no tokenizer could be loaded from {source}"):
            tokenizer = self._read_tokenizer(source)
        if add_padding:
            _ensure_pad_token(tokenizer)
        return tokenizer

    def _read_tokenizer(self, source: str | Path) -> "PreTrainedTokenizerBase":
        """Read a tokenizer from a GGUF file, a folder, or a hub id."""
        from transformers import AutoTokenizer

        config = self.model_config
        if isinstance(source, Path) and source.suffix == ".gguf" and source.is_file():
            from folovllm.loading.gguf.header import read_gguf
            from folovllm.loading.gguf.tokenizer import make_tokenizer

            own = source == self.checkpoint.folder / str(self.checkpoint.gguf)
            return make_tokenizer(self.checkpoint.gguf_file if own else read_gguf(source))
        if isinstance(source, Path):
            check_tokenizer_files(source)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source,
            use_fast=config.tokenizer_mode == "auto",
            trust_remote_code=config.trust_remote_code,
            padding_side="left",
            token=self._token,
            **({"revision": config.revision} if isinstance(source, str) else {}),
        )
        return tokenizer

    def load_model_and_tokenizer(
        self, device: "str | torch.device | None" = None
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Load both; a padding token new to the vocabulary gets an embedding.

        Args:
            device: where to; None for CUDA where there is one, else the CPU.

        Raises:
            ModelLoadError: one of them cannot be loaded.
        """
        tokenizer = self.load_tokenizer()
        model = self.load_model(device)
        embeddings: Any = model.get_input_embeddings()
        rows = embeddings.weight.shape[0]
        if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= rows:
            model.resize_token_embeddings(tokenizer.pad_token_id + 1, mean_resizing=False)
        return model, tokenizer

    def _load_config(self) -> "PreTrainedConfig":
        from transformers import AutoConfig

        checkpoint = self.checkpoint
        if checkpoint.gguf:
            from folovllm.loading.gguf.config import make_config

            with explain_load_errors(f"the configuration of {checkpoint.name} cannot be made"):
                return make_config(checkpoint.gguf_file)
        check_config(checkpoint, trusted=self.model_config.trust_remote_code)
        check_generation_config(checkpoint.folder)
        with explain_load_errors(f"the configuration of {checkpoint.name} cannot be read"):
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                checkpoint.folder, trust_remote_code=self.model_config.trust_remote_code
            )
        return config

    def _load_weights(
        self, config: "PreTrainedConfig", device: "torch.device", dtype: "torch.dtype"
    ) -> "tuple[PreTrainedModel, str]":
        """The model, and the way in which it was loaded."""
        from folovllm.loading.direct import load_directly

        checkpoint = self.checkpoint
        check_changed_files(checkpoint.folder)
        with explain_load_errors(f"{checkpoint.name} cannot be loaded from {checkpoint.folder}"):
            if checkpoint.gguf:
                from folovllm.loading.gguf.weights import load_gguf

                return load_gguf(checkpoint.gguf_file, config, device, dtype), "from GGUF"
            if checkpoint.shards and not hasattr(config, "auto_map"):
                model = load_directly(config, checkpoint, device, dtype)
                if model is not None:
                    return model, "directly"
            return self._from_pretrained(config, device, dtype), "by transformers"

    def _from_pretrained(
        self, config: "PreTrainedConfig", device: "torch.device", dtype: "torch.dtype"
    ) -> "PreTrainedModel":
        """Leave it to transformers: quantized, renamed or merged weights, remote code."""
        from transformers import AutoModelForCausalLM

        loaded: Any = AutoModelForCausalLM.from_pretrained(
            self.checkpoint.folder,
            config=config,
            dtype=dtype,
            trust_remote_code=self.model_config.trust_remote_code,
            output_loading_info=True,
        )
        model, report = loaded
        # transformers fills what is missing with random numbers and only warns of it.
        if missing := sorted(report["missing_keys"]):
            raise ModelLoadError(
                f"{self.checkpoint.name} lacks {len(missing)} tensors that its architecture "
                f"{config.model_type} needs, among them {', '.join(missing[:3])}; the checkpoint "
                "is incomplete or of another architecture than its config.json says"
            )
        model.to(device)
        return cast("PreTrainedModel", model)

    def _fill_in_length(self, config: "PreTrainedConfig") -> None:
        longest, reason = checkpoint_length(config)
        if self.model_config.max_model_len is None:
            self.model_config.max_model_len = longest
        elif self.model_config.max_model_len > longest and not reason.startswith("the default"):
            logger.warning(
                "max_model_len is %d, but %s was made for at most %d positions (%s)",
                self.model_config.max_model_len,
                self.model_config.model,
                longest,
                reason,
            )


def get_model_and_tokenizer(
    model_config: ModelConfig, device: "str | torch.device | None" = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load the model and the tokenizer that a configuration names.

    Args:
        model_config: what to load.
        device: where to; None for CUDA where there is one, else the CPU.

    Raises:
        ModelLoadError: one of them cannot be loaded.
    """
    return ModelLoader(model_config).load_model_and_tokenizer(device)


def _device(device: "str | torch.device | None") -> "torch.device":
    try:
        return get_device(device)
    except ValueError as error:
        raise ModelLoadError(str(error)) from error


def _check_memory(checkpoint: Checkpoint, device: "torch.device", dtype: "torch.dtype") -> None:
    """Refuse before loading what cannot fit; a machine that swaps looks like one that hangs."""
    import torch

    # Without shards (old formats) only loading would tell.
    tensors = checkpoint.gguf_file.tensors if checkpoint.gguf else checkpoint.tensors
    needed = sum(prod(tensor.shape) for tensor in tensors.values()) * dtype.itemsize
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "cpu":
        free = available_memory()
    else:
        return
    if needed > free:
        raise ModelLoadError(
            f"not enough memory: the weights of {checkpoint.name} take {needed / GIB:.1f} GiB in "
            f"{str(dtype).removeprefix('torch.')}, and {free / GIB:.1f} GiB are free on {device}; "
            "take a smaller model or data type, or free memory"
        )


def _ensure_pad_token(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Pad with the end-of-sequence token, or a new `[PAD]`, where there is no padding token."""
    if tokenizer.pad_token is not None:
        return
    if tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    else:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
