"""Where a model's files are, and whether they can be a model at all.

Finds a hub id, a local folder or a `.gguf` file, and refuses with a clear error what cannot be
loaded, before anything large is read.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from folovllm.errors import ModelLoadError
from folovllm.loading.files import check_regular, read_json

if TYPE_CHECKING:
    from folovllm.loading.gguf.header import GgufFile

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.py"]


@dataclass(frozen=True)
class Checkpoint:
    """The files of a model on this machine.

    Attributes:
        name: the model as the user named it.
        folder: where its files are.
        shards: its safetensors files; empty when the weights are in another format.
        gguf: the name of the GGUF file in the folder, when that is the whole model.
    """

    name: str
    folder: Path
    shards: tuple[Path, ...] = ()
    gguf: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The parsed `config.json`; empty for a GGUF file, which has its own header.

        Raises:
            ModelLoadError: the file is not a JSON object.
        """
        if self.gguf:
            return {}
        path = self.folder / "config.json"
        return read_json(path)

    @cached_property
    def tensors(self) -> "dict[str, StoredTensor]":
        """Every tensor of the safetensors files by name, from their headers alone.

        Raises:
            ModelLoadError: a file is truncated, or its header is damaged.
        """
        return {name: tensor for shard in self.shards for name, tensor in _read_shard(shard)}

    @cached_property
    def gguf_file(self) -> "GgufFile":
        """The head of the GGUF file, read once.

        Raises:
            ModelLoadError: it is no GGUF file, or damaged.
        """
        from folovllm.loading.gguf.header import read_gguf  # which needs NumPy and gguf

        return read_gguf(self.folder / str(self.gguf))


def find_checkpoint(
    model: str, revision: str | None = None, token: str | None = None
) -> Checkpoint:
    """Find a model's files, and download those of a hub id.

    Args:
        model: local folder, `.gguf` file, or hub id; a local path wins over a hub id.
        revision: branch, tag or commit of a hub id.
        token: access token for a gated hub id.

    Raises:
        ModelLoadError: there is no such model, or files are missing.
    """
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelLoadError(
                f"{path} is a file; a model is a folder with config.json and weights, "
                "a .gguf file, or a hub id"
            )
        return Checkpoint(model, path.parent, gguf=path.name)
    if not path.is_dir():
        if path.is_absolute() or not _HUB_ID.fullmatch(model):
            raise ModelLoadError(
                f"no model at {path.absolute()}: there is no such folder or .gguf file"
            )
        path = _download(model, revision, token)
    return _check_folder(model, path)


def _check_folder(model: str, folder: Path) -> Checkpoint:
    check_regular(folder)
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        raise ModelLoadError(f"the model folder {folder} is empty")
    if "config.json" not in names:
        ggufs = [name for name in names if name.endswith(".gguf")]
        hint = f"; name the file itself: {folder / ggufs[0]}" if ggufs else ""
        raise ModelLoadError(f"the model folder {folder} has no config.json{hint}")
    if "model.safetensors.index.json" in names:
        return Checkpoint(model, folder, _shards_of_index(folder))
    if "model.safetensors" in names:
        return Checkpoint(model, folder, (folder / "model.safetensors",))
    if not any(re.fullmatch(r"pytorch_model.*\.bin", name) for name in names):
        raise ModelLoadError(
            f"the model folder {folder} has no weights: looked for model.safetensors, "
            f"model.safetensors.index.json and pytorch_model*.bin; it holds {', '.join(names)}"
        )
    return Checkpoint(model, folder)


def _shards_of_index(folder: Path) -> tuple[Path, ...]:
    index = folder / "model.safetensors.index.json"
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f"{index} has no weight_map; the checkpoint is damaged")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelLoadError(
                f"{index} says weight_map[{tensor!r}] = {str(name)[:60]!r}; expected the name of "
                "a file in the same folder"
            )
    shards = tuple(folder / name for name in sorted(set(weight_map.values())))
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ModelLoadError(
            f"{len(missing)} of {len(shards)} weight files are missing in {folder}: "
            f"{', '.join(missing)}; copy or download them again"
        )
    return shards


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor stands in a safetensors file.

    Attributes:
        file: the file.
        begin: where its first byte stands in it.
        dtype: its data type as safetensors names it ("BF16").
        shape: its shape.
    """

    file: Path
    begin: int
    dtype: str
    shape: tuple[int, ...]


def _read_shard(shard: Path) -> Iterable[tuple[str, StoredTensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(shard, framework="pt"):  # checks all that the header says
            return _read_header(shard).items()
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(
            f"{shard} is truncated or damaged ({error}); copy or download it again"
        ) from error


def _read_header(shard: Path) -> dict[str, StoredTensor]:
    """Eight bytes of length, then JSON; safetensors' own reader does not tell the offsets."""
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(
            shard, 8 + length + info["data_offsets"][0], info["dtype"], tuple(info["shape"])
        )
        for name, info in header.items()
    }


def _download(model: str, revision: str | None, token: str | None) -> Path:
    """The local snapshot of a hub model, its missing files fetched first."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError

    def fetch(*patterns: str) -> Path:
        # Subfolders and `consolidated` files hold the weights a second time in other layouts.
        folder = snapshot_download(
            model,
            revision=revision,
            token=token,
            allow_patterns=list(patterns),
            ignore_patterns=["*/*", "consolidated*"],
        )
        return Path(folder)

    try:
        folder = fetch(*_SMALL_FILES, "*.safetensors")
        if not list(folder.glob("*.safetensors")):
            folder = fetch(*_SMALL_FILES, "pytorch_model*.bin")
    except GatedRepoError as error:
        raise ModelLoadError(
            f"the hub model {model} is gated: ask for access on its page, then set "
            "FOLOVLLM_HF_TOKEN to an access token"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelLoadError(
            f"no model {model!r}: there is no folder {Path(model).absolute()}, and the hub gave "
            f"no model of that name ({reason}). Check the name and the network, or give a "
            "local folder"
        ) from error
    return folder
