"""From the tensors of a GGUF file to a model of transformers, each dequantized where it goes."""

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from gguf.quants import dequantize
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from folovllm.errors import ModelLoadError
from folovllm.loading.direct import build_model
from folovllm.loading.gguf.architectures import Architecture, Undo
from folovllm.loading.gguf.config import find_architecture
from folovllm.loading.gguf.header import GgufFile, GgufTensor
from folovllm.loading.gguf.special import ending_ids, sampling_defaults
from folovllm.utils.progress import progress_bar

_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<module>\w+)(?:\.(?P<kind>weight|bias))?")

_IN_CONFIG = ("rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that the configuration was made of."""

_ROPE = "rope_freqs.weight"
"""By what the frequencies of the positions are divided: llama.cpp's way to keep Llama 3's."""

_GATE, _UP = "ffn_gate_exps", "ffn_up_exps"
"""Which transformers keeps in one tensor, gates first."""

_ALL = slice(None)


def load_gguf(
    file: GgufFile, config: PreTrainedConfig, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """Build a model and fill it.

    Args:
        file: the file.
        config: what `make_config` made of it.
        device: where the parameters go.
        dtype: their data type.

    Raises:
        ModelLoadError: the tensors are not those of the model, or of a type that cannot be read.
    """
    architecture = find_architecture(file)
    # The sizes are believed once the tensors have them: building takes memory.
    with torch.device("meta"):
        shapes = build_model(config, dtype).state_dict()
    places = dict(_places(file, architecture, shapes))
    model = build_model(config, dtype)
    _fill(file, model, places, architecture.undo)
    missing = set(shapes) - {name for name, _ in places.values()}
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    if missing:
        raise ModelLoadError(
            f"{file.path} lacks {len(missing)} tensors that its architecture "
            f"{file.architecture} needs, among them those of {', '.join(sorted(missing)[:3])}"
        )
    if _ROPE in file.tensors:
        _divide_frequencies(file, model)
    model.generation_config = _make_generation_config(file, config)
    model.to(device)  # type: ignore[arg-type]  # transformers' stubs forget devices
    return model


def _make_generation_config(file: GgufFile, config: PreTrainedConfig) -> GenerationConfig:
    made = GenerationConfig.from_model_config(config)
    ends = ending_ids(file)
    made.eos_token_id = ends[0] if len(ends) == 1 else ends or None
    if sampling := sampling_defaults(file):
        made.update(do_sample=True, **sampling)
    return made


def _places(
    file: GgufFile, architecture: Architecture, shapes: dict[str, torch.Tensor]
) -> Iterator[tuple[str, tuple[str, slice]]]:
    """Yield where each tensor goes: a parameter, and which of its rows.

    Raises:
        ModelLoadError: the model has no such parameter, or one of another shape.
    """
    for tensor in file.tensors.values():
        if tensor.name in _IN_CONFIG or (tensor.name == _ROPE and file.architecture == "llama"):
            continue
        name = _translate(tensor.name, architecture)
        if name not in shapes:
            raise ModelLoadError(
                f"{file.path} has the tensor {tensor.name} of shape {list(tensor.shape)}, which "
                f"FoloVLLM does not know of the architecture {file.architecture}; without it the "
                "model would give other results"
            )
        expected, rows = list(shapes[name].shape), _ALL
        if _GATE in tensor.name or _UP in tensor.name:
            expected[1] //= 2
            rows = slice(expected[1]) if _GATE in tensor.name else slice(expected[1], None)
        # Some are turned, or lack a dimension of one, until they are read.
        if sorted(n for n in tensor.shape if n > 1) != sorted(n for n in expected if n > 1):
            raise _wrong_shape(file, tensor.name, expected)
        yield tensor.name, (name, rows)


def _translate(name: str, architecture: Architecture) -> str:
    """Return transformers' name of a tensor; the empty text where it has none."""
    match = _NAME.fullmatch(name)
    if match is None:
        return ""
    layer, module, kind = match["layer"], match["module"], match["kind"] or "weight"
    if layer is None:
        found = architecture.top.get(module)
    else:
        found = architecture.layer.get(module)
        found = found and f"{architecture.layers}.{int(layer)}.{found}"
    if found is None:
        return ""
    return found if ".experts." in found else f"{found}.{kind}"


def _fill(
    file: GgufFile,
    model: PreTrainedModel,
    places: dict[str, tuple[str, slice]],
    undo: Undo | None,
) -> None:
    """Dequantize each tensor into its parameter."""
    parameters = model.state_dict()

    def fill(name: str) -> int:
        numbers = numbers_of(file, file.tensors[name])
        if undo is not None:
            numbers = undo(name, numbers, model.config)
        parameter, rows = places[name]
        target = parameters[parameter]
        if rows != _ALL:
            target = target[:, rows]
        if target.shape != numbers.shape:
            raise _wrong_shape(file, name, target.shape)
        target.copy_(torch.from_numpy(np.ascontiguousarray(numbers)))
        return file.tensors[name].data.nbytes

    # Several at once, as NumPy computes on one core; in the order of the file.
    done, total = 0, sum(file.tensors[name].data.nbytes for name in places)
    with progress_bar("loading weights", total) as bar, ThreadPoolExecutor(4) as pool:
        for size in pool.map(fill, places):
            bar(done := done + size)


def _wrong_shape(file: GgufFile, name: str, expected: Iterable[int]) -> ModelLoadError:
    return ModelLoadError(
        f"{file.path} has the tensor {name} of shape {list(file.tensors[name].shape)}; by what "
        f"the file says of its sizes, {list(expected)} is expected"
    )


def _divide_frequencies(file: GgufFile, model: PreTrainedModel) -> None:
    """Honour `rope_freqs`: turn each pair of dimensions as much slower."""
    factors = torch.from_numpy(numbers_of(file, file.tensors[_ROPE]))
    rotary: Any = model.get_decoder().rotary_emb
    if factors.shape != rotary.inv_freq.shape or not (factors > 0).all():
        raise ModelLoadError(
            f"{file.path} has {_ROPE} of shape {list(factors.shape)}; expected "
            f"{list(rotary.inv_freq.shape)} numbers above 0"
        )
    for name in ("inv_freq", "original_inv_freq"):
        setattr(rotary, name, getattr(rotary, name) / factors)


def numbers_of(file: GgufFile, tensor: GgufTensor) -> np.ndarray:
    """Return the numbers of a tensor in float32.

    Raises:
        ModelLoadError: they are stored in a way that the package `gguf` cannot read.
    """
    try:
        numbers: np.ndarray = dequantize(tensor.data, tensor.type)
    except NotImplementedError as error:
        raise ModelLoadError(
            f"{file.path} stores {tensor.name} as {tensor.type.name}, which the package gguf "
            f"cannot read ({error})"
        ) from error
    # What is stored in float32 is still the mapped file, which must not be written to.
    return numbers if numbers.flags.writeable else numbers.copy()
