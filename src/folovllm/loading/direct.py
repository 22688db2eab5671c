"""The short way from safetensors files to a model: mapped, or streamed in chunks.

A checkpoint whose tensors are the model's own, name for name, needs none of what
`from_pretrained` is prepared for (renamed, merged, quantized or missing weights). Its files are
mapped into memory and become the parameters; what changes data type or device is streamed.
Whatever is not that straight is left to transformers.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.initialization import no_init_weights, no_tie_weights

from folovllm.loading.checkpoint import Checkpoint, StoredTensor
from folovllm.utils.progress import progress_bar

# Both of transformers' context managers replace functions for the whole process while they
# last; two threads that enter and leave in turn would leave the replacements behind.
_BUILDING = threading.Lock()

STRAIGHT_TYPES = frozenset(
    [
        "gemma",
        "gemma2",
        "gemma3_text",
        "gpt2",
        "llama",
        "mistral",
        "olmo",
        "olmo2",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
    ]
)
"""Architectures whose tensors transformers loads as they stand in the files; a test compares.

Of the others it is asked, and the first question costs more than mapping a small model: it
compiles the patterns of all architectures that it knows.
"""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Data types as safetensors names them; the 8-bit floats of quantized models are not straight."""

CHUNK = 4 << 20
"""Bytes read and converted at a time by each thread."""

HALF_TYPES = (torch.float16, torch.bfloat16)


def load_directly(
    config: PreTrainedConfig, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel | None:
    """Build a causal language model upon the tensors of safetensors files.

    On a CPU, in the checkpoint's data type, the parameters *are* the mapped files: nothing is
    read before it is used, and processes share the pages. The files must not be overwritten
    in place while the model lives. Elsewhere they are read in small chunks. Either way, memory
    holds the weights once.

    Args:
        config: the model's configuration.
        checkpoint: the model's files, in safetensors format.
        device: where the parameters go.
        dtype: their data type.

    Returns:
        The model, or None when the tensors do not fit the model one to one.

    Raises:
        ModelLoadError: a file is truncated, or its header is damaged.
    """
    if getattr(config, "quantization_config", None) is not None:
        return None
    stored = checkpoint.tensors
    model = build_model(config, dtype)
    if not _is_straight(model, dtype):
        return None
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if any(
        expected.get(name) != tensor.shape or tensor.dtype not in DTYPES
        for name, tensor in stored.items()
    ):
        return None

    state = _read(stored, device, dtype)
    missing = set(model.load_state_dict(state, strict=False, assign=True).missing_keys)
    # Symmetric, as in from_pretrained: of two tied parameters the checkpoint may hold either.
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    if missing:
        return None
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    _read_generation_config(model, checkpoint.folder)
    return model


def build_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model's modules, with parameters that are allocated and never touched.

    Untouched memory is only address space, so this costs as little as the meta device; unlike
    there, buffers that no checkpoint holds (rotary frequencies) get their real values.
    """
    with _BUILDING, no_init_weights(), no_tie_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model


def _is_straight(model: PreTrainedModel, dtype: torch.dtype) -> bool:
    """Whether transformers would load each tensor as it stands in the files."""
    keeps_float32 = (
        "_keep_in_fp32_modules",  # honoured for float16
        "_keep_in_fp32_modules_strict",  # honoured for both half types
    )
    if dtype in HALF_TYPES and any(getattr(model, name, None) for name in keeps_float32):
        return False
    if model.config.model_type in STRAIGHT_TYPES:
        return True
    return not get_model_conversion_mapping(model, add_legacy=False)


def _read(
    stored: dict[str, StoredTensor], device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Every tensor on the device and in the data type, mapped where neither changes."""
    wanted = {name: _wanted(tensor, dtype) for name, tensor in stored.items()}
    if device.type == "cpu" and all(DTYPES[stored[n].dtype] == wanted[n] for n in stored):
        return _map({tensor.file for tensor in stored.values()})
    buffers = threading.local()

    def copy(name: str) -> torch.Tensor:
        if not hasattr(buffers, "own"):
            buffers.own = memoryview(bytearray(CHUNK))
        target = torch.empty(stored[name].shape, dtype=wanted[name], device=device)
        _copy(stored[name], target.view(-1), buffers.own)
        return target

    # In the order of the files: a disk, and the kernel's reading ahead, want it so.
    names = sorted(stored, key=lambda name: (stored[name].file, stored[name].begin))
    state: dict[str, torch.Tensor] = {}
    done, total = 0, sum(prod(stored[n].shape) * wanted[n].itemsize for n in stored)
    # Several tensors at once: what takes the time is the kernel's handing out of fresh pages,
    # which torch's own threads, at work on one tensor, wait for in turn.
    with progress_bar("loading weights", total) as bar, ThreadPoolExecutor(4) as pool:
        for name, tensor in zip(names, pool.map(copy, names), strict=True):
            state[name] = tensor
            bar(done := done + tensor.nbytes)
    return state


def _wanted(tensor: StoredTensor, dtype: torch.dtype) -> torch.dtype:
    """Numbers take the model's data type; indices and masks keep theirs."""
    own = DTYPES[tensor.dtype]
    return dtype if own.is_floating_point else own


def _map(shards: set[Path]) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            state |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return state


def _copy(source: StoredTensor, target: torch.Tensor, buffer: memoryview) -> None:
    """Read a tensor into the flat `target` and convert it, chunk by chunk.

    A chunk is small enough to be converted from the processor's cache and, unlike the pages of
    a mapped file, adds nothing to the memory of the process. It also reads a cold file in long
    stretches, where copying from a mapping would have the kernel fetch it page by page.
    """
    dtype = DTYPES[source.dtype]
    step = CHUNK // dtype.itemsize
    with source.file.open("rb") as file:
        file.seek(source.begin)
        for begin in range(0, target.numel(), step):
            part = target[begin : begin + step]
            size = part.numel() * dtype.itemsize
            if file.readinto(buffer[:size]) != size:
                raise OSError(f"{source.file} ended early: it was changed while it was read")
            part.copy_(torch.frombuffer(buffer, dtype=dtype, count=part.numel()))


def _read_generation_config(model: PreTrainedModel, folder: Path) -> None:
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
