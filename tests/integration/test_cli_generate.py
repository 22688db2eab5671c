"""`folovllm generate` on tiny models, in this process where that is enough."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from folovllm import LLM, SamplingParams
from folovllm.cli.main import main

pytestmark = pytest.mark.usefixtures("clean_commands")

PROMPTS = ["the cat sat", "a mat"]
GREEDY = ("--temperature", "0", "--ignore-eos", "--max-tokens", "6")
PARAMS = SamplingParams(temperature=0, ignore_eos=True, max_tokens=6)


@pytest.fixture
def expected(chat_model):
    """The greedy outputs of the two prompts."""
    return LLM(str(chat_model)).generate(PROMPTS, PARAMS, use_tqdm=False)


def command(*arguments):
    return [sys.executable, "-m", "folovllm", "generate", *map(str, arguments)]


def test_texts_in_a_pipe(chat_model, expected, capsys):
    texts = [output.outputs[0].text for output in expected]
    assert all(texts)
    assert main(["generate", "--model", str(chat_model), *GREEDY, PROMPTS[0]]) == 0
    assert tuple(capsys.readouterr()) == (f"{texts[0]}\n", "")
    assert main(["generate", *PROMPTS, "--model", str(chat_model), *GREEDY]) == 0
    assert tuple(capsys.readouterr()) == ("".join(f"{text}\n" for text in texts), "")


def test_json_lines(chat_model, expected, tmp_path, capsys):
    path = tmp_path / "prompts.jsonl"
    ids = expected[1].prompt_token_ids
    message = {"role": "user", "content": "the cat"}
    rows = [{"prompt": PROMPTS[0]}, {"prompt_token_ids": ids}, {"messages": [message]}]
    path.write_text("\n".join(map(json.dumps, rows)))
    arguments = ["--file", str(path), "--json", "--logprobs", "1", "--prompt-logprobs", "0"]
    assert main(["generate", "--model", str(chat_model), *GREEDY, *arguments]) == 0
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    for index, row in enumerate((first, second)):
        output = expected[index]
        assert (row["schema"], row["index"], row["error"]) == (1, index, None)
        assert row["prompt_token_ids"] == output.prompt_token_ids
        (completion,) = row["outputs"]
        assert completion["text"] == output.outputs[0].text
        assert completion["token_ids"] == output.outputs[0].token_ids
        assert (completion["finish_reason"], completion["stop_reason"]) == ("length", None)
        assert [list(each) for each in completion["logprobs"]] == [
            [str(token_id)] for token_id in completion["token_ids"]
        ]
        assert completion["cumulative_logprob"] < 0
        assert row["prompt_logprobs"][0] is None
        assert len(row["prompt_logprobs"]) == len(row["prompt_token_ids"])
        assert row["metrics"]["num_generation_tokens"] == 6
        assert row["metrics"]["time_to_first_token"] > 0
    assert (first["prompt"], second["prompt"], third["prompt"]) == (PROMPTS[0], None, "the cat . ")


def test_several_texts_of_one_prompt(chat_model, capsys):
    arguments = ["--n", "3", "--temperature", "1", "--seed", "1", "--max-tokens", "5", "--json"]
    lines = []
    for _ in range(2):
        assert main(["generate", "--model", str(chat_model), "--chat", "a cat", *arguments]) == 0
        lines.append(json.loads(capsys.readouterr().out))
    texts = [completion["text"] for completion in lines[0]["outputs"]]
    assert len(set(texts)) > 1
    assert lines[1]["outputs"] == lines[0]["outputs"]
    assert lines[0]["prompt"] == "a cat . "


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--stop-token-ids", "10"], "--stop-token-ids must be token ids below 10"),
        (["a", "cat " * 300], "prompts[1]: the prompt has 300 tokens and the model's max_model"),
        (["cat " * 300], "the prompt has 300 tokens"),
        (["a", "--logprobs", "11"], "--logprobs must be at most 10"),
    ],
)
def test_what_cannot_be_served_is_wrong_usage(arguments, message, chat_model, capsys):
    assert main(["generate", "--model", str(chat_model), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"folovllm: {message}")
    assert captured.out == ""


@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_what_fails_is_told_and_the_others_are_not_lost(json_option, chat_model, capsys):
    model = LlamaForCausalLM.from_pretrained(chat_model)
    with torch.no_grad():
        model.model.embed_tokens.weight[1] = torch.nan  # "cat"
    model.save_pretrained(chat_model)
    arguments = ["the cat", "a mat", *GREEDY, "--max-tokens", "1", *json_option]
    assert main(["generate", "--model", str(chat_model), *arguments]) == 1
    captured = capsys.readouterr()
    assert "folovllm: prompts[0]: the model's logits hold NaN" in captured.err
    lines = captured.out.splitlines()
    assert len(lines) == 2
    if json_option:
        assert "NaN" in json.loads(lines[0])["error"]
        assert json.loads(lines[1])["error"] is None
    else:
        assert lines[0] == ""
        assert lines[1] != ""
    assert main(["generate", "--model", str(chat_model), "cat"]) == 1
    assert "folovllm: the model's logits hold NaN" in capsys.readouterr().err


def test_as_a_process_through_pipes(chat_model, expected):
    done = subprocess.run(
        command("--model", chat_model, *GREEDY),
        input=f"{PROMPTS[0]}\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{expected[0].outputs[0].text}\n"


def test_a_reader_that_has_enough_and_a_full_disk(chat_model):
    """The stream ends when nobody reads it."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as output:
        done = subprocess.run(
            command("--model", chat_model, *GREEDY, "a"), stdout=output, stderr=subprocess.PIPE
        )
    assert (done.returncode, done.stderr) == (1, b"")
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as output:
            done = subprocess.run(
                command("--model", chat_model, *GREEDY, *PROMPTS),
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert done.returncode == 1
        assert done.stderr == "folovllm: the disk is full: the output could not be written\n"


def test_ctrl_c_while_it_streams(chat_model):
    process = subprocess.Popen(
        command("--model", chat_model, "a", "--ignore-eos", "--max-tokens", "none"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert first
    assert process.returncode == 130
    assert output.endswith(b"\n")
    assert errors == b"folovllm: interrupted\n"


def test_the_default_model(demo_model, monkeypatch, capsys):
    monkeypatch.setenv("FOLOVLLM_CACHE_DIR", str(demo_model.parent))
    question = "What is the capital of France?"
    assert main(["generate", "--chat", question, "--max-tokens", "16"]) == 0
    assert tuple(capsys.readouterr()) == ("The capital of France is Paris.\n", "")
