"""The head of a GGUF file: its metadata and where its tensors are.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The file is mapped and its
head is read once; everything in it is checked against the size of the file before it is believed.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from folovllm.errors import ModelLoadError

MAX_ELEMENTS = 1 << 23
"""The longest list in the metadata; the largest vocabularies have 2^18 tokens, 2^19 merges."""

MAX_KEYS = 1 << 16
"""The most keys, and the most tensors."""

# The types of metadata by number; text is 8, a list 9.
_NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_TEXT, _LIST = 8, 9


class _DamageError(ValueError):
    """What is wrong with a file."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor in a file.

    Attributes:
        name: as llama.cpp names it ("blk.0.attn_q.weight").
        shape: its shape, the slowest dimension first, as torch has it.
        type: how its numbers are stored.
        data: its bytes in the mapped file, a row of the last dimension a row, `[..., bytes]`.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    data: np.ndarray


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file.

    Attributes:
        path: the file.
        architecture: as llama.cpp names it ("qwen2moe").
        metadata: what it says of itself; lists of numbers are arrays.
        tensors: its tensors by name.
    """

    path: Path
    architecture: str
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Map a file and read its head.

    Raises:
        ModelLoadError: it cannot be read, is no GGUF file, or is damaged.
    """
    try:
        if not path.is_file():  # a pipe would never answer
            raise _DamageError("it is no regular file")
        metadata, tensors = _Reader(np.memmap(path, np.uint8, mode="r")).read()
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise _DamageError("general.architecture names no architecture")
    except (OSError, ValueError, struct.error) as error:
        raise ModelLoadError(
            f"{path} is no GGUF file, or is truncated or damaged ({error}); copy or download it "
            "again"
        ) from error
    return GgufFile(path, architecture, metadata, tensors)


class _Reader:
    """Reads a file from front to back; whatever would reach beyond its end is refused."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data
        self.view = data.data
        self.at = 0

    def read(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        if bytes(self.view[:4]) != b"GGUF":
            raise _DamageError("it does not begin with the letters GGUF")
        self.at = 4
        version = self.number("<I")
        if version not in {2, 3}:
            order = "big-endian" if version > 1 << 16 else f"version {version}"
            raise _DamageError(f"it is {order}; versions 2 and 3, little-endian, can be read")
        num_tensors, num_keys = self.number("<Q"), self.number("<Q")
        if max(num_tensors, num_keys) > MAX_KEYS:
            raise _DamageError(f"it claims {num_tensors} tensors and {num_keys} keys")
        metadata = self.named(num_keys, "key", lambda _: self.value(self.number("<I")))
        places = self.named(num_tensors, "tensor", lambda _: self.place())
        return metadata, self.tensors(places, metadata.get("general.alignment", 32))

    def named(self, count: int, what: str, read: Callable[[str], Any]) -> dict[str, Any]:
        """Read names, each with what follows it."""
        found: dict[str, Any] = {}
        for _ in range(count):
            name = self.text()
            if name in found:
                raise _DamageError(f"the {what} {name!r} occurs twice")
            found[name] = read(name)
        return found

    def take(self, size: int) -> int:
        """Move on by some bytes; return where they begin."""
        begin = self.at
        if size > len(self.data) - begin:
            raise _DamageError(f"at byte {begin} it needs {size} more, and ends before")
        self.at += size
        return begin

    def number(self, form: str) -> Any:
        return struct.unpack_from(form, self.view, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        size = self.number("<Q")
        begin = self.take(size)
        return str(self.view[begin : self.at], "utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            return self.elements(self.number("<I"), self.number("<Q"))
        return self.numbers(kind, 1)[0].item()

    def elements(self, kind: int, count: int) -> Any:
        if count > MAX_ELEMENTS:
            raise _DamageError(f"a list of {count} elements at byte {self.at}")
        return [self.text() for _ in range(count)] if kind == _TEXT else self.numbers(kind, count)

    def numbers(self, kind: int, count: int) -> np.ndarray:
        if kind not in _NUMBERS:
            raise _DamageError(f"a value of type {kind} at byte {self.at}")
        begin = self.take(_NUMBERS[kind].itemsize * count)
        found: np.ndarray = self.data[begin : self.at].view(_NUMBERS[kind])
        return found

    def place(self) -> tuple[tuple[int, ...], int, int]:
        """Read the shape, the type and the offset of a tensor."""
        num_dims = self.number("<I")
        if not 1 <= num_dims <= 4:
            raise _DamageError(f"a tensor of {num_dims} dimensions at byte {self.at}")
        shape = tuple(self.number("<Q") for _ in range(num_dims))
        return shape[::-1], self.number("<I"), self.number("<Q")

    def tensors(
        self, places: dict[str, tuple[tuple[int, ...], int, int]], alignment: object
    ) -> dict[str, GgufTensor]:
        if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 20:
            raise _DamageError(f"general.alignment is {alignment!r}")
        start = -(-self.at // alignment) * alignment
        end_before = start
        found = {}
        for name, (shape, kind, offset) in sorted(places.items(), key=lambda item: item[1][2]):
            type_, row = _row_of(name, shape, kind)
            begin, size = start + offset, prod(shape[:-1]) * row
            if begin < end_before or begin + size > len(self.data):
                raise _DamageError(f"the tensor {name!r} lies in another or beyond the end")
            end_before = begin + size
            data = self.data[begin:end_before].reshape(*shape[:-1], row)
            found[name] = GgufTensor(name, shape, type_, data)
        return found


def _row_of(name: str, shape: tuple[int, ...], kind: int) -> tuple[GGMLQuantizationType, int]:
    """Return a tensor's type and the bytes of one of its rows."""
    try:
        type_ = GGMLQuantizationType(kind)
        block, size = GGML_QUANT_SIZES[type_]
    except (ValueError, KeyError) as error:
        raise _DamageError(f"the tensor {name!r} is of the unknown type {kind}") from error
    if 0 in shape or shape[-1] % block:
        raise _DamageError(f"the tensor {name!r} of type {type_.name} has the shape {shape}")
    return type_, shape[-1] // block * size
