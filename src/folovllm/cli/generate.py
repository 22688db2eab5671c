"""`folovllm generate`: complete prompts."""

import argparse
import json
import math
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from folovllm.cli.options import add_command, load_llm
from folovllm.cli.prompts import GivenPrompt, read_prompts, to_engine
from folovllm.cli.sampling_options import (
    add_sampling_options,
    check_sampling,
    explain_usage,
    sampling_params,
)
from folovllm.cli.streaming import stream_text

if TYPE_CHECKING:
    from folovllm.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput

MAX_TOKENS = 128


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = add_command(commands, "generate", "complete prompts")
    parser.add_argument(
        "prompts", nargs="*", metavar="PROMPT", help="one or several; none or -: standard input"
    )
    parser.add_argument(
        "--file",
        metavar="FILE",
        help="read one prompt a line (-: from standard input); of a .jsonl file one JSON object "
        'a line: {"prompt": TEXT}, {"prompt_token_ids": [...]} or {"messages": [...]}',
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="take prompts for a user's messages, by the model's chat template",
    )
    parser.add_argument(
        "--json", action="store_true", help="write one JSON object a line, in the prompts' order"
    )
    add_sampling_options(parser, max_tokens=MAX_TOKENS)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the texts; 0 when all prompts were completed."""
    check_sampling(arguments)
    given = read_prompts(arguments.prompts, arguments.file)
    llm = load_llm(arguments)
    params = sampling_params(arguments, llm)
    with explain_usage():
        prompts = [to_engine(llm, prompt, chat=arguments.chat) for prompt in given]
    if len(prompts) == 1 and params.best_of == 1 and not arguments.json:
        last = stream_text(llm, prompts[0], params).last
        return _report_failures([last] if last else [])
    with explain_usage():
        outputs = llm.generate(prompts, params)
    if arguments.json:
        _write_json(outputs)
    else:
        _write_texts(given, outputs)
    return _report_failures(outputs)


def _write_texts(given: list[GivenPrompt], outputs: "list[RequestOutput]") -> None:
    """Each text ends its line; a terminal shows the prompts as well."""
    for prompt, output in zip(given, outputs, strict=True):
        if sys.stdout.isatty():
            sys.stdout.write(f"> {_title(prompt)}\n")
        for completion in output.outputs:
            end = "" if completion.text.endswith("\n") else "\n"
            sys.stdout.write(completion.text + end)


def _title(prompt: GivenPrompt) -> str:
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
    line = " ".join(text.split())
    return line if len(line) <= 72 else line[:71] + "…"


def _report_failures(outputs: "list[RequestOutput]") -> int:
    """Say what the engine gave up, and return the exit code."""
    errors = [(place, output.error) for place, output in enumerate(outputs) if output.error]
    for place, error in errors:
        which = f"prompts[{place}]: " if len(outputs) > 1 else ""
        sys.stderr.write(f"folovllm: {which}{error}\n")
    return 1 if errors else 0


def _write_json(outputs: "list[RequestOutput]") -> None:
    for index, output in enumerate(outputs):
        of_prompt = output.prompt_logprobs
        row = {
            "schema": 1,
            "index": index,
            "prompt": output.prompt,
            "prompt_token_ids": output.prompt_token_ids,
            "outputs": [_completion(completion) for completion in output.outputs],
            "prompt_logprobs": None if of_prompt is None else list(map(_logprobs, of_prompt)),
            "num_cached_tokens": output.num_cached_tokens,
            "metrics": output.metrics and _metrics(output.metrics),
            "error": output.error,
        }
        sys.stdout.write(json.dumps(row) + "\n")


def _completion(completion: "CompletionOutput") -> dict[str, Any]:
    logprobs = completion.logprobs
    return {
        "index": completion.index,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "cumulative_logprob": _finite(completion.cumulative_logprob),
        "logprobs": None if logprobs is None else list(map(_logprobs, logprobs)),
    }


def _logprobs(logprobs: "dict[int, Logprob] | None") -> dict[int, dict[str, Any]] | None:
    if logprobs is None:  # of a prompt's first token
        return None
    return {
        token_id: {**asdict(logprob), "logprob": _finite(logprob.logprob)}
        for token_id, logprob in logprobs.items()
    }


def _metrics(metrics: "RequestMetrics") -> dict[str, Any]:
    """Durations in seconds, and counts."""
    return {
        "time_in_queue": metrics.time_in_queue,
        "time_to_first_token": metrics.time_to_first_token,
        "time_per_output_token": metrics.time_per_output_token,
        "num_generation_tokens": metrics.num_generation_tokens,
        "num_preemptions": metrics.num_preemptions,
    }


def _finite(number: float | None) -> float | None:
    """JSON has no infinity, the logarithm of a probability of 0."""
    return number if number is not None and math.isfinite(number) else None
