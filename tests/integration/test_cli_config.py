"""`folovllm config --resolved`: what would really run, and why."""

import json
import os

import pytest

from folovllm.cli.main import main

pytestmark = pytest.mark.usefixtures("clean_commands", "one_thread")


def test_as_text(tiny_folder, monkeypatch, capsys):
    monkeypatch.setenv("FOLOVLLM_NUM_GPU_BLOCKS_OVERRIDE", "9")
    monkeypatch.setenv("FOLOVLLM_ATTENTION_BACKEND", "sdpa")
    folder = str(tiny_folder())
    capsys.readouterr()  # of making it
    assert main(["config", "--resolved", "--model", folder, "--max-num-seqs", "3"]) == 0
    captured = capsys.readouterr()
    title, *lines = captured.out.splitlines()
    assert title == "EngineSetup"
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines}
    assert rows["model"] == [folder, "asked for (argument model)"]
    assert rows["attention_backend"] == ["sdpa", "asked for (variable FOLOVLLM_ATTENTION_BACKEND)"]
    assert rows["block_size"] == ["16", "the sdpa backend's preference"]
    assert rows["max_model_len"] == ["64", "the checkpoint's max_position_embeddings"]
    assert rows["max_num_seqs"] == ["3", "asked for (argument max_num_seqs)"]
    blocks, reason = rows["num_blocks"]
    assert blocks == "9"
    assert reason.startswith("asked for (variable FOLOVLLM_NUM_GPU_BLOCKS_OVERRIDE): ")
    assert captured.err == ""


def test_as_json(tiny_folder, capsys):
    options = ["--dtype", "float32", "--max-model-len", "32"]
    assert main(["config", "--resolved", "--json", "--model", str(tiny_folder()), *options]) == 0
    content = json.loads(capsys.readouterr().out)
    assert list(content) == ["schema", "setup"]
    setup = content["setup"]
    assert all(set(row) == {"value", "reason"} and row["reason"] for row in setup.values())
    assert setup["max_model_len"] == {"value": 32, "reason": "asked for (argument max_model_len)"}
    assert setup["dtype"]["value"] == "float32"
    assert sum(setup["linear_backends"]["value"].values()) > 0
    assert (setup["stop_token_ids"]["value"], setup["seed"]["value"]) == ([2], 0)


def test_the_default_model(demo_model, monkeypatch, capsys):
    monkeypatch.setenv("FOLOVLLM_CACHE_DIR", str(demo_model.parent))
    assert main(["config", "--resolved", "--json"]) == 0
    setup = json.loads(capsys.readouterr().out)["setup"]
    reason = "default (SmolLM2-135M-Instruct)"
    assert setup["model"] == {"value": str(demo_model), "reason": reason}


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (["--model", "/nowhere"], 1, "no model at /nowhere"),
        (["--block-size", "0"], 2, "block_size"),
        (["--cpu-kvcache-space", "1000000"], 2, "cpu_kvcache_space"),
    ],
)
def test_what_cannot_run(options, code, part, tiny_folder, capsys):
    folder = str(tiny_folder())
    capsys.readouterr()  # of making it
    assert main(["config", "--resolved", "--model", folder, *options]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert part in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_the_command_alone_loads_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FOLOVLLM_MODEL", os.fspath(tmp_path / "nowhere"))
    assert main(["config"]) == 0
    assert "EngineSetup" not in capsys.readouterr().out
