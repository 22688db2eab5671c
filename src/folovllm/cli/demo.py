"""`folovllm demo`: a real answer from a real model, and how long each part took."""

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from folovllm.cli.options import add_command, runnable_config
from folovllm.cli.verify import passed, show

if TYPE_CHECKING:
    import torch
    from transformers import TextStreamer

    from folovllm.diagnostics.verify import Verification

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

    verification = Verification(config.model_config)
    checks = show(verification.run())
    if not passed(checks):
        return 1
    loading = {check.name: check.seconds for check in checks}["model loads"]
    times["load the model"] = loading
    times["other checks, imports"] = sum(check.seconds for check in checks) - loading
    sys.stdout.write(f"\n> {arguments.question}\n")
    times |= _answer(verification, arguments.question)
    _show_times(times)
    return 0


class TimedStreamer:
    """Hands tokens on to a text streamer and notes when each arrived."""

    def __init__(self, streamer: "TextStreamer") -> None:
        """Wrap the streamer."""
        self.streamer = streamer
        self.arrivals: list[float] = []

    def put(self, tokens: "torch.Tensor") -> None:
        """Take the prompt first, then each token as it is generated."""
        self.arrivals.append(time.perf_counter())
        self.streamer.put(tokens)

    def end(self) -> None:
        """Print what is left."""
        self.streamer.end()


def _answer(verification: "Verification", question: str) -> dict[str, float]:
    """Stream the answer to standard output; how long its parts took, in seconds."""
    import torch
    from transformers import TextStreamer

    from folovllm.diagnostics.verify import encode_question

    model: Any = verification.model
    tokenizer = verification.tokenizer
    prompt = encode_question(tokenizer, question).to(model.device)
    streamer = TimedStreamer(TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True))
    with torch.inference_mode():
        model.generate(prompt, max_new_tokens=MAX_TOKENS, do_sample=False, streamer=streamer)
    start, first, *others = streamer.arrivals
    more, last = len(others), [first, *others][-1]
    rate = f" ({more / (last - first):.0f} a second)" if more > 1 else ""
    return {
        f"first token, after a prompt of {prompt.shape[1]}": first - start,
        f"{more} more tokens{rate}": last - first,
    }


def _show_times(times: dict[str, float]) -> None:
    sys.stdout.write("\n")
    for name, seconds in {**times, "all together": sum(times.values())}.items():
        sys.stdout.write(f"{seconds:8.2f} s  {name}\n")
