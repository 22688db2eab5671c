"""`folovllm demo`: a real answer from a real model, and how long each part took."""

import argparse
import sys
import time
from typing import TYPE_CHECKING

from folovllm.cli.checks import passed
from folovllm.cli.options import add_command, quieten_log, runnable_config
from folovllm.cli.streaming import stream_text
from folovllm.cli.verify import show
from folovllm.errors import FoloVLLMError
from folovllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from folovllm.llm import LLM

QUESTION = "Explain in two sentences what a language model is."
MAX_TOKENS = 96


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    text = "get a model, verify and load it, and let it answer a question"
    parser = add_command(commands, "demo", text)
    parser.add_argument("question", nargs="?", default=QUESTION, help=f"default: {QUESTION}")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Verify, answer, and print the times; 0 when the model answered."""
    times: dict[str, float] = {}
    clock = time.perf_counter
    start = clock()
    config = runnable_config(arguments)
    times["model files"] = clock() - start
    from folovllm.diagnostics.verify import Verification

    verification = Verification(config)
    checks = show(verification.run())
    if not passed(checks):
        return 1
    loading = {check.name: check.seconds for check in checks}["model loads"]
    times["load the model"] = loading
    times["other checks, imports"] = sum(check.seconds for check in checks) - loading
    quieten_log()
    sys.stdout.write(f"\n> {arguments.question}\n")
    times |= _answer(verification.llm, arguments.question)
    _show_times(times)
    return 0


def _answer(llm: "LLM", question: str) -> dict[str, float]:
    """Stream the answer to standard output; how long its parts took, in seconds."""
    from folovllm.diagnostics.verify import question_prompt

    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
    last = stream_text(llm, question_prompt(llm, question), params).last
    if last is None or last.metrics is None or last.error:
        raise FoloVLLMError(f"no answer: {last and last.error}")
    metrics = last.metrics
    first, each = metrics.time_to_first_token or 0.0, metrics.time_per_output_token or 0.0
    more = metrics.num_generation_tokens - 1
    rate = f" ({1 / each:.0f} a second)" if each else ""
    return {
        f"first token, after a prompt of {len(last.prompt_token_ids)}": first,
        f"{more} more tokens{rate}": more * each,
    }


def _show_times(times: dict[str, float]) -> None:
    sys.stdout.write("\n")
    for name, seconds in {**times, "all together": sum(times.values())}.items():
        sys.stdout.write(f"{seconds:8.2f} s  {name}\n")
