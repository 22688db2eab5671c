"""Whatever a checkpoint holds: it loads, or is refused by an error that says what is wrong.

No traceback of another kind, no hang, no memory that is not there.
"""

import random
import shutil
import signal
import time
from contextlib import suppress

import pytest

from folovllm import LLM, ModelLoadError
from folovllm.errors import ConfigError
from folovllm.loading.checksums import check_files, sha256_of
from tests.integration.gguf_files import TOKENIZER, metadata_of, tensors_of, write_gguf
from tests.integration.hostile_checkpoints import FOLDERS, GGUF_KEYS, RAW_GGUF

pytestmark = pytest.mark.usefixtures("one_thread")

SECONDS = 30  # on a machine that others use too; each takes a tenth of one


@pytest.fixture(autouse=True)
def _ends_in_time():
    """Fail where a test hangs, as reading from a pipe does."""

    def fail(*_):
        pytest.fail(f"it took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refuse(path):
    with pytest.raises((ModelLoadError, ConfigError)) as raised:
        LLM(str(path), device="cpu")
    assert 10 < len(str(raised.value)) < 1000
    return str(raised.value)


@pytest.mark.parametrize("name", FOLDERS)
def test_damaged_folders(tiny_folder, tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), folder)
    FOLDERS[name](folder)
    message = refuse(folder)
    assert str(folder) in message or "encoder-decoder" in message


@pytest.mark.parametrize("name", RAW_GGUF)
def test_damaged_gguf_files(tmp_path, name):
    path = tmp_path / "x.gguf"
    path.write_bytes(RAW_GGUF[name])
    assert str(path) in refuse(path)


@pytest.fixture(scope="module")
def parts(tiny_folder):
    """What a good GGUF file consists of."""
    from transformers import AutoModelForCausalLM

    vocabulary = len(TOKENIZER["tokenizer.ggml.tokens"])
    model = AutoModelForCausalLM.from_pretrained(tiny_folder("llama", vocab_size=vocabulary))
    own = {f"llama.{key}": value for key, value in metadata_of(model.config).items()}
    return {**own, **TOKENIZER}, tensors_of(model)


@pytest.fixture(scope="module")
def good_gguf(parts, tmp_path_factory):
    path = write_gguf(tmp_path_factory.mktemp("gguf") / "good.gguf", "llama", *parts)
    assert LLM(str(path), device="cpu")
    return path


@pytest.mark.parametrize("name", GGUF_KEYS)
def test_what_gguf_files_say(parts, tmp_path, name):
    metadata, tensors = parts
    architecture = GGUF_KEYS[name].get("general.architecture", "llama")
    metadata = {**metadata, **GGUF_KEYS[name]}
    metadata.pop("general.architecture", None)
    path = write_gguf(tmp_path / "x.gguf", architecture, metadata, tensors)
    assert str(path) in refuse(path)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.05, 0.1, 0.2, 0.5, 0.9, 0.999])
def test_gguf_files_that_were_cut(good_gguf, tmp_path, share):
    data = good_gguf.read_bytes()
    (tmp_path / "x.gguf").write_bytes(data[: int(len(data) * share)])
    refuse(tmp_path / "x.gguf")


def test_gguf_files_with_changed_bytes(good_gguf, tmp_path):
    # In what describes the model: a changed weight cannot be told, so some of these load.
    data, rng = good_gguf.read_bytes(), random.Random(0)
    path, end = tmp_path / "x.gguf", time.monotonic() + 5
    for _ in range(60):
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 8])):
            changed[rng.randrange(9000)] = rng.randrange(256)
        path.write_bytes(changed)
        with suppress(ModelLoadError, ConfigError):
            LLM(str(path), device="cpu")
        if time.monotonic() > end:
            break


def test_a_good_folder_is_taken(tiny_folder):
    assert LLM(str(tiny_folder("llama")), device="cpu")


@pytest.mark.parametrize(
    "form",
    [
        "{digest}  {name}",
        "{digest} *{name}",
        "{upper}  {name}",
        "{digest}  ./{name}",
        "SHA256 ({name}) = {digest}",
        "SHA256({name})= {digest}",
        "# made by hand\n\n{digest}  {name}\n",
        "\ufeff{digest}  {name}\r\n",
    ],
)
def test_the_usual_forms_of_checksums(tiny_folder, tmp_path, form):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), folder)
    digest = sha256_of(folder / "config.json")
    line = form.format(digest=digest, upper=digest.upper(), name="config.json")
    (folder / "SHA256SUMS").write_text(line)
    assert check_files(folder) == 1
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="is damaged"):
        check_files(folder)
