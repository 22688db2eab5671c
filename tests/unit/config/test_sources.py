"""Where values come from, when what is there is odd: pipes, devices, large files, no home."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from folovllm.config import CONFIG_CLASSES, CacheConfig, ModelConfig, RuntimeConfig, sources
from folovllm.config.settings import check_variables
from folovllm.errors import ConfigError
from folovllm.loading.default_model import demo_model_path
from folovllm.utils import files


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.upper().startswith("FOLOVLLM_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "PIPE_SECONDS", 0.2)


def refusal(call, *arguments, **options):
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **options)
    return str(caught.value)


@pytest.fixture
def pipe():
    """Put a text into a pipe and return the name that a shell's `<(command)` has."""
    readers = []

    def make(text):
        reader, writer = os.pipe()
        os.write(writer, text.encode())
        os.close(writer)
        readers.append(reader)
        return f"/dev/fd/{reader}"

    yield make
    for reader in readers:
        os.close(reader)


def test_an_env_file_from_a_pipe(pipe, monkeypatch):
    monkeypatch.setenv("FOLOVLLM_ENV_FILE", pipe("FOLOVLLM_BLOCK_SIZE=32\n"))
    assert [CacheConfig().block_size for _ in range(3)] == [32] * 3
    assert CacheConfig().origin("block_size").endswith(":1 FOLOVLLM_BLOCK_SIZE")


def test_an_env_file_from_standard_input():
    program = "from folovllm.config import CacheConfig; print(CacheConfig().block_size)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        input="FOLOVLLM_BLOCK_SIZE=32\n",
        env={**os.environ, "FOLOVLLM_ENV_FILE": "/dev/stdin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "32\n", done.stderr


def test_a_secret_from_a_pipe(pipe, monkeypatch):
    monkeypatch.setenv("FOLOVLLM_HF_TOKEN_FILE", pipe("hf_secret\n"))
    config = ModelConfig(model="m")
    assert config.hf_token.get_secret_value() == "hf_secret"
    assert config.origin("hf_token") == "variable FOLOVLLM_HF_TOKEN_FILE"
    assert check_variables(CONFIG_CLASSES) is None


def test_an_env_file_that_is_a_pipe(monkeypatch):
    os.mkfifo(".env")
    assert refusal(CacheConfig) == (
        ".env cannot be read: it is a pipe, and nothing was written to it for 0.2 s"
    )


@pytest.mark.parametrize("name", [".env", "named"])
def test_an_env_file_that_is_a_device(name, monkeypatch):
    Path(name).symlink_to("/dev/zero")
    if name == "named":
        monkeypatch.setenv("FOLOVLLM_ENV_FILE", name)
    assert f"{name}" in refusal(CacheConfig)
    assert "cannot be read: it is a device, not a file" in refusal(CacheConfig)


def test_a_link_to_nothing_is_no_env_file():
    Path(".env").symlink_to("nothing")
    assert CacheConfig().block_size == 16


def test_a_large_env_file(monkeypatch):
    lines = [f"OTHER_{number}=some value of another program" for number in range(200_000)]
    lines[100_000:100_000] = ["FOLOVLLM_BLOCK_SIZE=32"]
    Path(".env").write_text("\n".join(lines))
    start = time.process_time()
    for _ in range(10):
        assert CacheConfig().block_size == 32
    assert time.process_time() - start < 20  # two on an idle machine
    monkeypatch.setattr(sources, "LARGEST_ENV_FILE", 1 << 20)
    assert refusal(CacheConfig) == (
        ".env cannot be read: it is larger than 1 MiB, the most that is read"
    )


@pytest.mark.parametrize("kind", ["zero", "fifo", "large", "folder", "utf16"])
def test_a_secret_file_of_a_wrong_kind(kind, monkeypatch):
    path = Path("key")
    if kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"secret" * 100_000 if kind == "large" else "secret".encode("utf-16"))
    monkeypatch.setenv("FOLOVLLM_HF_TOKEN_FILE", "key")
    message = refusal(ModelConfig, model="m")
    assert message.startswith("hf_token: variable FOLOVLLM_HF_TOKEN_FILE: key cannot be read: it ")
    assert "secret" not in message


def test_thousands_of_unknown_variables():
    Path(".env").write_text("".join(f"FOLOVLLM_X{number}=1\n" for number in range(20_000)))
    lines = refusal(check_variables, CONFIG_CLASSES).splitlines()
    assert len(lines) == 7
    assert lines[5] == "and 19995 more"


def test_long_names_and_values_are_abridged(monkeypatch):
    monkeypatch.setenv("FOLOVLLM_" + "X" * 50_000, "1")
    assert len(refusal(check_variables, CONFIG_CLASSES)) < 500
    assert len(refusal(CacheConfig, block_size="x" * 50_000)) < 500
    assert len(refusal(CacheConfig, **{"x" * 50_000: 1})) < 500
    assert len(refusal(ModelConfig, model="m" * 5000)) < 500


@pytest.mark.parametrize("name", ["~nosuchuser/x", "x" * 5000, "a\udcffb"])
def test_an_env_file_with_an_odd_name(name, monkeypatch):
    monkeypatch.setenv("FOLOVLLM_ENV_FILE", name)
    assert "variable FOLOVLLM_ENV_FILE names" in refusal(CacheConfig)
    monkeypatch.delenv("FOLOVLLM_ENV_FILE")
    monkeypatch.setenv("FOLOVLLM_HF_TOKEN_FILE", name)
    assert "variable FOLOVLLM_HF_TOKEN_FILE" in refusal(ModelConfig, model="m")


@pytest.mark.parametrize("field", ["model", "tokenizer", "revision", "hf_token", "dtype"])
def test_nul_characters(field):
    Path(".env").write_text(f"FOLOVLLM_{field.upper()}=a\0b\n")
    assert f"{field}: got " in refusal(ModelConfig, **({} if field == "model" else {"model": "m"}))


def test_nul_characters_of_paths():
    for value in ("a\0b", Path("a\0b")):
        assert "it contains a NUL character" in refusal(RuntimeConfig, cache_dir=value)


@pytest.mark.parametrize("level", ["debug", "Warning", "INFO"])
def test_log_levels_in_small_letters(level, monkeypatch):
    monkeypatch.setenv("FOLOVLLM_LOG_LEVEL", level)
    assert RuntimeConfig().log_level == level.upper()


def test_a_cache_folder_of_nobody():
    assert "there is no home folder for ~nosuchuser" in refusal(
        RuntimeConfig, cache_dir="~nosuchuser/x"
    )


def test_without_a_home(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert RuntimeConfig().log_level == "INFO"
    assert "set HOME, or FOLOVLLM_CACHE_DIR" in refusal(demo_model_path)
    monkeypatch.setenv("FOLOVLLM_CACHE_DIR", "here")
    assert demo_model_path().parent == Path("here")
