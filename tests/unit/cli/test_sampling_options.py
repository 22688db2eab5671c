"""`SamplingParams` from the command line; nothing is loaded."""

import argparse
from dataclasses import fields

import pytest

from folovllm import ConfigError, SamplingParams
from folovllm.cli import sampling_options
from folovllm.cli.main import main
from folovllm.cli.sampling_options import (
    add_sampling_options,
    check_sampling,
    explain_usage,
    sampling_params,
)

FOR_PROGRAMS = {
    "logit_bias",
    "allowed_token_ids",
    "detokenize",
    "output_kind",
    "use_beam_search",
}


class RecommendedLLM:
    """An LLM as far as its recommendation goes."""

    def __init__(self, **recommended):
        self.recommended = recommended

    def get_default_sampling_params(self):
        return SamplingParams(**self.recommended)


def parse(*texts, **options):
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed")
    add_sampling_options(parser, max_tokens=128, **options)
    return parser.parse_args(texts)


def params_of(*texts, **recommended):
    return sampling_params(parse(*texts), RecommendedLLM(**recommended))


def test_every_field_has_an_option_or_is_left_out_on_purpose():
    names = {field.name for field in fields(SamplingParams)}
    assert names == {*sampling_options._HELP, "seed"} | FOR_PROGRAMS


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((), {}),
        (("--max-tokens", "5"), {"max_tokens": 5}),
        (("--max-tokens=none",), {"max_tokens": None}),
        (("--temperature", "0.5", "--top-k", "-1"), {"temperature": 0.5, "top_k": -1}),
        (("--n", "2", "--best-of", "3"), {"n": 2, "best_of": 3}),
        (("--n", "2"), {"n": 2}),
        (("--stop", "a b", "--stop", "é"), {"stop": ["a b", "é"]}),
        (("--stop-token-ids", "3", "--stop-token-ids", "4"), {"stop_token_ids": [3, 4]}),
        (("--ignore-eos", "--min-tokens", "20"), {"ignore_eos": True, "min_tokens": 20}),
        (("--no-skip-special-tokens",), {"skip_special_tokens": False}),
        (("--seed", "7"), {"seed": 7}),
        (("--presence-penalty", "-0.5"), {"presence_penalty": -0.5}),
    ],
)
def test_options_become_fields(texts, expected):
    check_sampling(parse(*texts))
    assert params_of(*texts) == SamplingParams(**{"max_tokens": 128, **expected})


def test_the_checkpoint_recommends_what_is_not_given():
    params = params_of("--top-p", "0.5", temperature=0.7, top_p=0.9, max_tokens=3)
    assert params == SamplingParams(temperature=0.7, top_p=0.5, max_tokens=128)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("--top-p", "2"), r"^--top-p must be a finite number in \(0, 1\], got 2.0"),
        (("--temperature", "hot"), "^--temperature must be a finite number >= 0, got 'hot'"),
        (("--max-tokens", "1.5"), "^--max-tokens must be an integer >= 1, got '1.5'"),
        (("--stop-token-ids", "x"), r"^--stop-token-ids\[0\] must be .*got 'x'"),
        (("--stop", ""), r"^--stop\[0\] must be a non-empty string"),
        (("--seed", "x"), "^--seed must be an integer"),
        (("--min-tokens", "9", "--max-tokens", "8"), r"^--min-tokens must be .*8 \(max_tokens\)"),
    ],
)
def test_wrong_values_are_refused_by_their_option(texts, message):
    with pytest.raises(ConfigError, match=message):
        check_sampling(parse(*texts))


def test_what_contradicts_the_recommendation_is_refused():
    with pytest.raises(ConfigError, match=r"^--best-of must be 1"):
        params_of("--best-of", "2", temperature=0)


def test_refusals_of_one_prompt_of_several_name_it_and_the_option():
    with (
        pytest.raises(ConfigError, match=r"^prompts\[3\]: --stop-token-ids must be"),
        explain_usage(),
    ):
        raise ValueError("prompts[3]: stop_token_ids must be token ids")
    with pytest.raises(ConfigError, match=r"^the prompt has 9 tokens$"), explain_usage():
        raise ValueError("the prompt has 9 tokens")


def test_a_command_leaves_out_what_means_nothing_to_it(capsys):
    with pytest.raises(SystemExit):
        parse("--n", "2", without=("n",))
    assert "--n" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("generate", "Hi"), ("chat",)])
def test_wrong_values_stop_before_anything_is_loaded(command, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FOLOVLLM_CACHE_DIR", str(tmp_path / "cache"))
    assert main([*command, "--top-k", "-2"]) == 2
    captured = capsys.readouterr()
    expected = "folovllm: --top-k must be -1 or 0 (off) or an integer >= 1, got -2\n"
    assert captured.err == expected
    assert captured.out == ""
    assert not (tmp_path / "cache").exists()
