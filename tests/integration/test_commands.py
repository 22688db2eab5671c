"""`folovllm verify` and `folovllm demo` on real models, in this process."""

import json
import logging
import os
import shutil

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from folovllm.cli.main import main
from folovllm.loading.checksums import write_checksums

CHECKS = [
    "packages",
    "torch",
    "device",
    "model files",
    "tokenizer",
    "model loads",
    "logits",
    "answer",
]


@pytest.fixture(autouse=True)
def clean_environment(demo_model, monkeypatch, tmp_path):
    """No variable of ours but the cache folder in which the default model is."""
    for name in list(os.environ):
        if name.upper().startswith("FOLOVLLM_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FOLOVLLM_CACHE_DIR", str(demo_model.parent))
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("folovllm")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.fixture
def tiny_model(demo_model, tmp_path):
    """A random model of one narrow layer with the default model's tokenizer, and checksums."""
    folder = tmp_path / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(demo_model / name, folder)
    write_checksums(folder)
    return folder


def report_of(path):
    return json.loads(path.read_text(encoding="utf-8"))


def failed_check(report):
    """The one check that failed, all before it being well and all after it skipped."""
    states = [check["status"] for check in report["checks"]]
    place = states.index("failed")
    after = len(states) - place - 1
    assert states == ["ok"] * place + ["failed"] + ["skipped"] * after
    return report["checks"][place]


def test_verify_the_default_model(demo_model, tmp_path, capsys):
    path = tmp_path / "report.json"
    assert main(["verify", "--json", str(path)]) == 0
    *lines, summary = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CHECKS)
    for line, name in zip(lines, CHECKS, strict=True):
        assert line.startswith(f"ok      {name} ")
    assert "Paris" in lines[-1]
    assert summary == "8 of 8 checks passed: this installation works"

    report = report_of(path)
    assert list(report) == ["schema", "ok", "checks"]
    assert (report["schema"], report["ok"]) == (1, True)
    assert [check["name"] for check in report["checks"]] == CHECKS
    for check in report["checks"]:
        assert list(check) == ["name", "status", "detail", "seconds"]
        assert check["status"] == "ok"
        assert check["seconds"] >= 0
    assert str(demo_model) in report["checks"][3]["detail"]
    assert "checksums agree" in report["checks"][3]["detail"]


def test_verify_replaces_an_old_report(tiny_model, tmp_path):
    path = tmp_path / "report.json"
    path.write_text("x" * 100_000)
    main(["verify", "--json", str(path), "--model", str(tmp_path / "nowhere")])
    assert report_of(path)["ok"] is False


def test_verify_a_missing_model(tmp_path, capsys):
    path = tmp_path / "report.json"
    assert main(["verify", "--json", str(path), "--model", str(tmp_path / "nowhere")]) == 1
    check = failed_check(report_of(path))
    assert check["name"] == "model files"
    assert str(tmp_path / "nowhere") in check["detail"]
    captured = capsys.readouterr()
    assert "3 of 8 checks passed: this installation does not work" in captured.out
    assert "skipped answer" in captured.out
    assert "because model files failed" in captured.out
    assert "Traceback" not in captured.out + captured.err


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "SHA256SUMS"])
def test_verify_a_damaged_file(name, tiny_model, tmp_path):
    content = bytearray((tiny_model / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tiny_model / name).write_bytes(content)
    path = tmp_path / "report.json"
    assert main(["verify", "--json", str(path), "--model", str(tiny_model)]) == 1
    check = failed_check(report_of(path))
    assert check["name"] == "model files"
    assert str(tiny_model) in check["detail"]


def test_verify_a_file_that_is_gone(tiny_model, tmp_path):
    (tiny_model / "generation_config.json").unlink()
    path = tmp_path / "report.json"
    assert main(["verify", "--json", str(path), "--model", str(tiny_model)]) == 1
    assert "generation_config.json is missing" in failed_check(report_of(path))["detail"]


def test_verify_weights_that_are_no_numbers(tiny_model, tmp_path, capsys):
    model = LlamaForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        model.lm_head.weight[7, 3] = torch.nan
    model.save_pretrained(tiny_model)
    write_checksums(tiny_model)
    path = tmp_path / "report.json"
    assert main(["verify", "--json", str(path), "--model", str(tiny_model)]) == 1
    check = failed_check(report_of(path))
    assert check["name"] == "logits"
    assert "NaN" in check["detail"]
    assert "FOLOVLLM_DTYPE=float32" in check["detail"]


def test_verify_a_tokenizer_that_is_no_tokenizer(tiny_model, tmp_path, capsys):
    (tiny_model / "tokenizer.json").write_text("{\n}\n")
    write_checksums(tiny_model)
    path = tmp_path / "report.json"
    assert main(["verify", "--json", str(path), "--model", str(tiny_model)]) == 1
    check = failed_check(report_of(path))
    assert check["name"] == "tokenizer"
    assert "\n" not in check["detail"]  # one line a check


def test_demo_with_the_default_model(capsys):
    assert main(["demo", "What is the capital of France?"]) == 0
    captured = capsys.readouterr()
    checks, _, rest = captured.out.partition("\n> What is the capital of France?\n")
    assert "8 of 8 checks passed" in checks
    assert "Paris" in rest
    for name in ("model files", "load the model", "first token", "a second", "all together"):
        assert name in rest
    assert "Traceback" not in captured.err


def test_demo_with_a_missing_model(tmp_path, capsys):
    assert main(["demo", "--model", str(tmp_path / "nowhere")]) == 1
    output = capsys.readouterr().out
    assert "this installation does not work" in output
    assert "all together" not in output


@pytest.mark.parametrize("tokens", [1, 2])
def test_demo_with_a_short_answer(tokens, demo_model, monkeypatch, capsys):
    """A model may end its answer at once."""
    monkeypatch.setattr("folovllm.cli.demo.MAX_TOKENS", tokens)
    assert main(["demo", "Hello"]) == 0
    rest = capsys.readouterr().out.partition("> Hello\n")[2]
    assert "first token" in rest
    assert f"{tokens - 1} more tokens" in rest
