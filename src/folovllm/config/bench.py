"""The settings of single benchmarks, read as those of the engine are (`folovllm.config`)."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from folovllm.config.settings import Settings

MOST = 10**7
"""The largest length, number, rate or time that a benchmark takes."""


def _split(value: Any) -> Any:
    """A variable's "1, 2, 4" as what it stands for."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Range:
    """Lengths from `low` to `high`, both included, in tokens."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "Range":
        """Read "128" or "16-256".

        Raises:
            ValueError: it is neither, or a length is below 1 or above `MOST`.
        """
        low, dash, high = text.partition("-")
        try:
            parsed = cls(int(low), int(high) if dash else int(low))
        except ValueError:
            parsed = cls(0, 0)
        if not 1 <= parsed.low <= parsed.high <= MOST:
            raise ValueError(
                f"a length like 128, or a range like 16-256, from 1 to {MOST}, got {text!r}"
            )
        return parsed

    def draw(self, rng: random.Random) -> int:
        """One of them, each as likely."""
        return rng.randint(self.low, self.high)

    def __str__(self) -> str:
        """As `parse` reads it."""
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


def _checked(value: str) -> str:
    Range.parse(value)
    return value


Length = Annotated[str, AfterValidator(_checked)]
Counts = Annotated[tuple[Annotated[int, Field(gt=0, le=MOST)], ...], BeforeValidator(_split)]
Rates = Annotated[tuple[Annotated[float, Field(gt=0, le=MOST)], ...], BeforeValidator(_split)]
PositiveFloat = Annotated[float, Field(gt=0, le=MOST)]


class LatencyConfig(Settings):
    """What `folovllm bench latency` measures; what the engine does not take is left out."""

    bench_prompts: Counts | None = Field(
        None, description="Prompt lengths, like `16,128`, to wait for the first token by"
    )
    bench_batches: Counts | None = Field(
        None, description="Numbers of sequences, like `1,8`, to wait for the next token by"
    )
    bench_contexts: Counts | None = Field(
        None, description="Lengths after which one sequence alone waits for the next token"
    )


class RequestsConfig(Settings):
    """The requests of `folovllm bench throughput` and `sweep`, and who else gets them."""

    bench_input_len: Length | None = Field(
        None, description="Prompt length in tokens, like `128`, or a range, like `16-256`"
    )
    bench_output_len: Length | None = Field(
        None, description="Tokens to generate a request, like `128`, or a range, like `16-128`"
    )
    bench_dataset: Path | None = Field(
        None, description="JSON file of conversations, as ShareGPT's, to take the requests from"
    )
    bench_url: str | None = Field(
        None,
        description="Server with OpenAI's interface; `throughput` measures it beside the engine, "
        "`sweep` in its place",
    )
    bench_api_key: SecretStr | None = Field(None, description="Key for that server")


class ThroughputConfig(Settings):
    """What `folovllm bench throughput` measures."""

    bench_requests: Annotated[int, Field(gt=0, le=MOST)] | None = Field(
        None, description="Number of requests that are there at once; unset, 32"
    )
    bench_workload: str | None = Field(
        None,
        description="Requests by name: `single`, `prefill`, `batch`, `prefix`, `nano-vllm`, or "
        "several with commas; unset, the first four, unless lengths or a dataset are set",
    )
    bench_peer: bool = Field(True, description="Measure transformers' `generate`, too")


class SweepConfig(Settings):
    """What `folovllm bench sweep` measures."""

    bench_rates: Rates | None = Field(
        None,
        description="Requests a second, like `0.5,1,2`; unset, from 0.5 to 1.25 times those of "
        "a closed batch",
    )
    bench_seconds: PositiveFloat = Field(
        8.0, description="How long requests arrive at each rate, in seconds"
    )
    bench_ttft: PositiveFloat = Field(
        2000.0, description="Milliseconds within which the first token counts as in time"
    )
    bench_tpot: PositiveFloat = Field(
        200.0, description="Milliseconds a token, on average, that count as in time"
    )


SUITE_CLASSES: tuple[type[Settings], ...] = (
    LatencyConfig,
    RequestsConfig,
    ThroughputConfig,
    SweepConfig,
)
"""All of them."""
