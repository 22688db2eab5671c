"""Text on standard output as the model writes it."""

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from folovllm.cli.sampling_options import explain_usage
from folovllm.errors import ConfigError
from folovllm.outputs import RequestOutput
from folovllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from folovllm.llm import LLM
    from folovllm.text.input_processor import PromptType


@dataclass(slots=True)
class Streamed:
    """What was written.

    Attributes:
        text: all of it.
        num_tokens: how many tokens it has.
        last: the last output; None when it was stopped before there was one.
    """

    text: str = ""
    num_tokens: int = 0
    last: RequestOutput | None = None

    def add(self, output: RequestOutput) -> None:
        """Write what came."""
        self.last = output
        for completion in output.outputs:
            self.text += completion.text
            self.num_tokens += len(completion.token_ids)
            sys.stdout.write(completion.text)
        sys.stdout.flush()

    def end_line(self) -> None:
        """End the line, unless the text has."""
        if not self.text.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()


def stream_text(
    llm: "LLM",
    prompt: "PromptType",
    params: SamplingParams,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Streamed:
    """Complete a prompt on standard output, and end the line.

    Args:
        llm: the model.
        prompt: the prompt.
        params: how to sample; one output.
        is_stopped: asked before every step of the engine, also while a long prompt is computed.

    Raises:
        ConfigError: the prompt or the parameters cannot be served.
        EngineDeadError: the engine cannot go on.
    """
    streamed = Streamed()
    with closing(llm.stream(prompt, params, is_stopped=is_stopped)) as outputs:
        try:
            with explain_usage():
                for output in outputs:
                    streamed.add(output)
        except ConfigError:  # it was refused before anything was written
            raise
        except BaseException:
            streamed.end_line()
            raise
    streamed.end_line()
    return streamed
