"""Damaged checkpoints: each function takes a good one's folder, or the bytes of a GGUF file."""

import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Damage = Callable[[Path], None]

DEEP = "[" * 100_000 + "]" * 100_000
NO_OBJECTS = {
    "empty": "",
    "cut": '{"a": ',
    "a list": "[]",
    "a number": "7",
    "null": "null",
    "nested": DEEP,
    "nested objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "binary": "\x00\x01\x02",
    "not utf-8": b"\xff\xfe\xfa{}",
    "an endless number": '{"a": ' + "9" * 5000 + "}",
}


def write(name: str, content: str | bytes) -> Damage:
    """Put something else into a file."""

    def damage(folder: Path) -> None:
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)

    return damage


def edit(name: str, *keys: str, value: Any) -> Damage:
    """Change a value in a file of JSON."""

    def damage(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        place = content
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = value
        path.write_text(json.dumps(content))

    return damage


def replace(name: str, make: Callable[[Path], object]) -> Damage:
    """Put something that is no file in the place of one."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return damage


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the header of the safetensors file, and its length with it."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        content = json.loads(data[8 : 8 + size])
        change(content)
        new = json.dumps(content).encode()
        path.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + size :])

    return damage


def first(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change what the header says of one tensor."""
    name = "model.layers.0.mlp.down_proj.weight"
    return header(lambda content: change(content[name]))


def index(weight_map: Any) -> Damage:
    """Write an index of shards."""
    return write("model.safetensors.index.json", json.dumps({"weight_map": weight_map}))


def _json_files() -> Iterator[tuple[str, Damage]]:
    names = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
    for name in (*names, "model.safetensors.index.json", "special_tokens_map.json"):
        for kind, content in NO_OBJECTS.items():
            yield f"{name} {kind}", write(name, content)


IN_CONFIG = {
    "num_hidden_layers": (0, -1, 10**5, 10**12, "x", None, [], {}, True, 2.5),
    "n_layer": (0, "x"),
    "hidden_size": (0, -1, "x", [], 2**40, 33),
    "intermediate_size": (0, -1, "x", 2**40, 40),
    "num_attention_heads": (0, -1, "x", 3),
    "num_key_value_heads": (0, -3, "x"),
    "vocab_size": (0, -1, "x", 2**45),
    "max_position_embeddings": ("x", [], {}),
    "rms_norm_eps": ("x", [], {}),
    "rope_parameters": ("x", 7, {"rope_type": "never"}, {"rope_type": "linear"}),
    "hidden_act": ("never", 7, {}),
    "model_type": (7, [], {}, "", "llamma", "vit", "t5"),
    "eos_token_id": ("x", {}, [[1]], 1.5, -7, 2**40, True),
    "bos_token_id": ("x", {}, [[1]]),
    "pad_token_id": ("x", {}, [1]),
    "text_config": ("x", 7, [], True),
    "quantization_config": ("x", 7),
    "dtype": ("never", 7, {}),
    "auto_map": ("x", 7),
}
IN_GENERATION = {
    "eos_token_id": ("x", {}, [[1]], ["1"], 1.5, -7, True),
    "bos_token_id": ("x", {}, [[1]]),
    "pad_token_id": ("x", {}, [1]),
    "temperature": ("hot", [], {}),
    "top_k": ("x", []),
    "top_p": ("x", []),
    "do_sample": ("x", 7, []),
    "max_length": ("x", {}),
    "repetition_penalty": ("x", {}),
}
IN_TOKENIZER = {
    "model_max_length": ("x", [], {}, True),
    "eos_token": (7, [], {}, {"content": 7}, True),
    "pad_token": (7, [], {"contents": "x"}),
    "padding_side": ("up", 7),
    "tokenizer_class": (7, []),
    "chat_template": (7, ["x"], [{"name": 7}], {"default": 7}),
    "additional_special_tokens": ("x", [7], {"a": 7}),
    "added_tokens_decoder": ("x", [], {"x": {}}, {"1": "x"}, {"1": {"content": 7}}),
    "clean_up_tokenization_spaces": ("x", []),
    "auto_map": ("x", 7),
}


def _wrong_types() -> Iterator[tuple[str, Damage]]:
    for name, rows in (
        ("config.json", IN_CONFIG),
        ("generation_config.json", IN_GENERATION),
        ("tokenizer_config.json", IN_TOKENIZER),
    ):
        for key, values in rows.items():
            for value in values:
                if (key, value) != ("num_hidden_layers", None):
                    yield f"{name} {key}={str(value)[:30]}", edit(name, key, value=value)
    for value in ("x", {}, 0, -1, 10**9):
        yield (
            f"config.json text_config.num_hidden_layers={value}",
            edit("config.json", "text_config", "num_hidden_layers", value=value),
        )
    yield "added_tokens.json", write("added_tokens.json", '{"a": "x"}')
    yield "tokenizer.json of a number", write("tokenizer.json", '{"model": 7}')
    yield "tokenizer.json without a model", write("tokenizer.json", '{"version": "1.0"}')


_WEIGHTS = "model.safetensors"
SAFETENSORS: dict[str, Damage] = {
    "empty": write(_WEIGHTS, b""),
    "a length alone": write(_WEIGHTS, (8).to_bytes(8, "little")),
    "a length of 2^60": write(_WEIGHTS, (1 << 60).to_bytes(8, "little") + b"{}"),
    "a length of 2^64-1": write(_WEIGHTS, b"\xff" * 8 + b"{}"),
    "no JSON": write(_WEIGHTS, (4).to_bytes(8, "little") + b"nope"),
    "a list": write(_WEIGHTS, (2).to_bytes(8, "little") + b"[]"),
    "no tensors": write(_WEIGHTS, (2).to_bytes(8, "little") + b"{}"),
    "nested": write(_WEIGHTS, len(DEEP).to_bytes(8, "little") + DEEP.encode()),
    "text": write(_WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "negative offsets": first(lambda tensor: tensor.update(data_offsets=[-4, 0])),
    "huge offsets": first(lambda tensor: tensor.update(data_offsets=[1 << 60, (1 << 60) + 4])),
    "offsets the wrong way": first(lambda tensor: tensor["data_offsets"].reverse()),
    "offsets of text": first(lambda tensor: tensor.update(data_offsets=["a", "b"])),
    "one offset": first(lambda tensor: tensor.update(data_offsets=[0])),
    "overlapping": first(lambda tensor: tensor.update(data_offsets=[0, 32 * 48 * 4])),
    "no offsets": first(lambda tensor: tensor.pop("data_offsets")),
    "a shape of text": first(lambda tensor: tensor.update(shape="x")),
    "a shape of 2^60": first(lambda tensor: tensor.update(shape=[1 << 60, 1 << 60])),
    "a negative shape": first(lambda tensor: tensor.update(shape=[-32, 48])),
    "no dimensions": first(lambda tensor: tensor.update(shape=[])),
    "another shape": first(lambda tensor: tensor.update(shape=[48, 32])),
    "an unknown type": first(lambda tensor: tensor.update(dtype="F7")),
    "a type of another size": first(lambda tensor: tensor.update(dtype="F64")),
    "a number for a tensor": header(lambda content: content.update(x=7)),
    "metadata of a number": header(lambda content: content.update(__metadata__=7)),
}
INDEX: dict[str, Damage] = {
    "no map": write("model.safetensors.index.json", "{}"),
    "a list": index(["a"]),
    "an empty map": index({}),
    "a number for a file": index({"a": 7}),
    "null for a file": index({"a": None, "b": "model.safetensors"}),
    "a list for a file": index({"a": ["model.safetensors"]}),
    "another folder": index({"a": "../model.safetensors"}),
    "an absolute path": index({"a": "/etc/passwd"}),
    "a device": index({"a": "/dev/zero"}),
    "a missing file": index({"a": "nowhere.safetensors"}),
    "an empty name": index({"a": ""}),
}
NO_FILES: dict[str, Damage] = {
    f"{name} is {kind}": replace(name, make)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json")
    for kind, make in {
        "a pipe": os.mkfifo,
        "a folder": lambda path: path.mkdir(),
        "a link to nothing": lambda path: path.symlink_to("nowhere"),
        "a device": lambda path: path.symlink_to("/dev/zero"),
    }.items()
}


def sums(content: str) -> Damage:
    """Write checksums as if before the files, which are then compared with them."""

    def damage(folder: Path) -> None:
        (folder / "SHA256SUMS").write_text(content)
        os.utime(folder / "SHA256SUMS", ns=(0, 0))

    return damage


SUMS: dict[str, Damage] = {
    "no checksums": write("SHA256SUMS", "hello world"),
    "another file": sums("0" * 64 + "  config.json"),
    "a missing file": write("SHA256SUMS", "0" * 64 + "  nowhere"),
    "another folder": write("SHA256SUMS", "0" * 64 + "  ../config.json"),
    "a device": write("SHA256SUMS", "0" * 64 + "  /dev/zero"),
    "of MD5": write("SHA256SUMS", "0" * 32 + "  config.json"),
    "binary": write("SHA256SUMS", b"\xff\x00\xfe"),
    "a pipe": replace("SHA256SUMS", os.mkfifo),
}

FOLDERS: dict[str, Damage] = {
    **dict(_json_files()),
    **dict(_wrong_types()),
    **{f"safetensors: {name}": damage for name, damage in SAFETENSORS.items()},
    **{f"index: {name}": damage for name, damage in INDEX.items()},
    **NO_FILES,
    **{f"SHA256SUMS: {name}": damage for name, damage in SUMS.items()},
}
"""Damage to a folder, by what it is."""


def text(value: str | bytes) -> bytes:
    """A text as GGUF has it."""
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def gguf(
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    keys: bytes = b"",
    num_keys: int = 0,
    tensors: bytes = b"",
    num_tensors: int = 0,
    rest: bytes = b"",
) -> bytes:
    """A GGUF file of raw parts."""
    start = magic + struct.pack("<IQQ", version, num_tensors, num_keys)
    return start + keys + tensors + rest


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")


def key(kind: int, value: bytes, name: str = "x") -> bytes:
    """A file whose second key is raw."""
    return gguf(keys=ARCHITECTURE + text(name) + struct.pack("<I", kind) + value, num_keys=2)


def tensor(
    shape: tuple[int, ...] = (32,),
    *,
    dims: int | None = None,
    kind: int = 0,
    offset: int = 0,
    name: str | bytes = "token_embd.weight",
    count: int = 1,
) -> bytes:
    """A file with a raw tensor."""
    dims = len(shape) if dims is None else dims
    info = text(name) + struct.pack("<I", dims) + struct.pack(f"<{len(shape)}Q", *shape)
    info = (info + struct.pack("<IQ", kind, offset)) * count
    parts = gguf(keys=ARCHITECTURE, num_keys=1, tensors=info, num_tensors=count)
    return parts + b"\0" * 4096


RAW_GGUF: dict[str, bytes] = {
    "empty": b"",
    "three letters": b"GGU",
    "letters alone": b"GGUF",
    "bad magic": gguf(magic=b"GGML"),
    "version 0": gguf(version=0),
    "version 1": gguf(version=1),
    "version 99": gguf(version=99),
    "big-endian": gguf(version=3 << 24),
    "nothing in it": gguf(),
    "2^60 keys": gguf(num_keys=1 << 60),
    "2^64-1 keys": gguf(num_keys=(1 << 64) - 1),
    "2^60 tensors": gguf(num_tensors=1 << 60),
    "2^16 keys": gguf(num_keys=1 << 16),
    "a key of 2^60 letters": gguf(keys=struct.pack("<Q", 1 << 60), num_keys=1),
    "a key of 2^63 letters": gguf(keys=struct.pack("<Q", 1 << 63), num_keys=1),
    "a cut key": gguf(keys=struct.pack("<Q", 8) + b"abc", num_keys=1),
    "a key without a value": gguf(keys=text("x"), num_keys=1),
    "a value of an unknown type": key(77, b"\0" * 8),
    "a cut number": key(10, b"\0"),
    "a cut text": key(8, struct.pack("<Q", 100) + b"a"),
    "a text of 2^62 letters": key(8, struct.pack("<Q", 1 << 62)),
    "a list of 2^60 numbers": key(9, struct.pack("<IQ", 4, 1 << 60)),
    "a list of 2^60 texts": key(9, struct.pack("<IQ", 8, 1 << 60)),
    "a list of 2^22 texts": key(9, struct.pack("<IQ", 8, 1 << 22)),
    "a list of lists": key(9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 9, 1) * 5),
    "a list of an unknown type": key(9, struct.pack("<IQ", 99, 1)),
    "a key twice": gguf(keys=ARCHITECTURE * 2, num_keys=2),
    "no architecture": gguf(
        keys=text("general.architecture") + struct.pack("<II", 4, 7), num_keys=1
    ),
    "no text": key(8, text(b"\xff\xfe"), name="general.type"),
    "an alignment of 0": key(4, struct.pack("<I", 0), name="general.alignment"),
    "an alignment of text": key(8, text("x"), name="general.alignment"),
    "an alignment of 2^31": key(4, struct.pack("<I", 1 << 31), name="general.alignment"),
    "no dimensions": tensor((), dims=0),
    "2^32-1 dimensions": tensor((32,), dims=(1 << 32) - 1),
    "five dimensions": tensor((1, 1, 1, 1, 1)),
    "a dimension of 0": tensor((0, 32)),
    "a dimension of 2^63": tensor((1 << 63, 32)),
    "2^60 numbers": tensor((1 << 30, 1 << 30)),
    "2^200 numbers": tensor((1 << 50, 1 << 50, 1 << 50, 1 << 50)),
    "beyond the end": tensor((32,), offset=1 << 20),
    "an offset of 2^63": tensor((32,), offset=1 << 63),
    "an unknown type": tensor((32,), kind=999),
    "a row of half a block": tensor((33,), kind=2),
    "a tensor twice": tensor((32,), count=2),
    "2^16 times one": tensor((32,), count=1 << 10),
    "a name of no text": tensor((32,), name=b"\xff\xff"),
    "no tensors": gguf(keys=ARCHITECTURE, num_keys=1, rest=b"\0" * 64),
    "a tensor alone": tensor((32, 8)),
}
"""GGUF files by what is wrong with them."""

GGUF_KEYS: dict[str, dict[str, Any]] = {
    "no layers": {"llama.block_count": 0},
    "-1 layers": {"llama.block_count": -1},
    "100,000 layers": {"llama.block_count": 100_000},
    "2^32-1 layers": {"llama.block_count": (1 << 32) - 1},
    "layers of text": {"llama.block_count": "x"},
    "layers in a list": {"llama.block_count": [2, 2]},
    "no width": {"llama.embedding_length": 0},
    "another width": {"llama.embedding_length": 33},
    "a width of 2^31": {"llama.embedding_length": 1 << 31},
    "no heads": {"llama.attention.head_count": 0},
    "3 heads": {"llama.attention.head_count": 3},
    "2^30 heads": {"llama.attention.head_count": 1 << 30},
    "0 heads of keys": {"llama.attention.head_count_kv": 0},
    "3 heads of keys": {"llama.attention.head_count_kv": 3},
    "heads of 2^30": {
        "llama.attention.key_length": 1 << 30,
        "llama.attention.value_length": 1 << 30,
    },
    "no feed-forward": {"llama.feed_forward_length": 0},
    "a feed-forward of 2^30": {"llama.feed_forward_length": 1 << 30},
    "no context": {"llama.context_length": 0},
    "a vocabulary of 0": {"llama.vocab_size": 0},
    "another vocabulary": {"llama.vocab_size": 7},
    "an epsilon of nan": {"llama.attention.layer_norm_rms_epsilon": float("nan")},
    "an epsilon of text": {"llama.attention.layer_norm_rms_epsilon": "x"},
    "a base of 0": {"llama.rope.freq_base": 0.0},
    "a base of infinity": {"llama.rope.freq_base": float("inf")},
    "a factor of 0": {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 0.0},
    "a factor of -1": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": -1.0},
    "an unknown scaling": {"llama.rope.scaling.type": "never"},
    "a scaling of a number": {"llama.rope.scaling.type": 7},
    "an unknown key": {"llama.never": 7},
    "another architecture": {"general.architecture": "never"},
    "experts": {"llama.expert_count": 8},
    "no tokens": {"tokenizer.ggml.tokens": None},
    "tokens of numbers": {"tokenizer.ggml.tokens": [1, 2, 3]},
    "two tokens alike": {"tokenizer.ggml.tokens": ["a", "a"]},
    "too many tokens": {"tokenizer.ggml.tokens": [f"t{i}" for i in range(5000)]},
    "types of text": {"tokenizer.ggml.token_type": ["a"] * 259},
    "few types": {"tokenizer.ggml.token_type": [1, 1]},
    "merges of numbers": {"tokenizer.ggml.merges": [1, 2]},
    "merges of one part": {"tokenizer.ggml.merges": ["ab", "cd"]},
    "merges of unknown parts": {"tokenizer.ggml.merges": ["never heard", "of this"]},
    "no kind of tokenizer": {"tokenizer.ggml.model": None},
    "an unknown kind of tokenizer": {"tokenizer.ggml.model": "never"},
    "an unknown pre-tokenizer": {"tokenizer.ggml.pre": "never"},
    "no pre-tokenizer": {"tokenizer.ggml.pre": None},
    "a pre-tokenizer of a number": {"tokenizer.ggml.pre": 7},
    "an end beyond the vocabulary": {"tokenizer.ggml.eos_token_id": 10**6},
    "an end of -1": {"tokenizer.ggml.eos_token_id": -1},
    "an end of text": {"tokenizer.ggml.eos_token_id": "x"},
    "a template of a number": {"tokenizer.chat_template": 7},
    "scores for SentencePiece": {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [1.0]},
}
"""What a good GGUF file says otherwise; None is left out."""
