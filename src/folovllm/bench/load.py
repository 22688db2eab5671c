"""How long a model takes until it is ready for its first token, beside what storage allows.

Each sample is a fresh process (`load_sample`), and all cases are sampled in turn, back and forth,
so that what else the machine does falls on all of them alike. docs/dev/benchmarks.md says how to
read the figures.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import TYPE_CHECKING, TypeAlias, get_args

from folovllm.bench.load_sample import Sample, Task, weight_bytes
from folovllm.bench.page_cache import State
from folovllm.bench.results import BenchError, Measurement, Record, Say, back_and_forth
from folovllm.config import ENGINE_CLASSES, EngineConfig
from folovllm.machine.threads import allowed_cores
from folovllm.model_loader import ModelLoader
from folovllm.utils.common import get_device

if TYPE_CHECKING:
    from folovllm.loading.checkpoint import Checkpoint

SUITE = "load"
ROUNDS = 3
CACHES: tuple[State, ...] = get_args(State)
DTYPES = ("float32", "bfloat16")
MODELS = ("folovllm", "from_pretrained")
"""The ways that end with a model, ready for its first token."""
LIMITS = ("read", "pinned copy")
"""What is the limit of the others: plain reading, which reading in parallel may still beat."""

MOST_SECONDS = 900
"""After which a process that loads a model hangs."""

SAME_ANSWER = 0.25
"""Log probabilities may differ so far by rounding; another model's differ by more."""

Take: TypeAlias = Callable[[Task], Sample]


@dataclass(slots=True)
class Taken:
    """The samples of a case, with the round in which each was taken, or why there are no more."""

    samples: dict[int, Sample] = field(default_factory=dict)
    failure: str | None = None


def measure_load(
    config: EngineConfig, rounds: int | None, record: Record, say: Say, take: "Take | None" = None
) -> None:
    """Take all samples of all cases, and record what there is of them, come what may.

    Args:
        config: of the engine; "auto" as its data type measures `DTYPES`.
        rounds: samples of each case; None for `ROUNDS`.
        record: takes the measurements: "ready" in seconds and "peak memory" in bytes.
        say: shows progress.
        take: takes a sample; None for a fresh process.

    Raises:
        BenchError: this is not Linux, the model has no safetensors files or cannot be loaded, or
            a case failed; the others are recorded.
        ModelLoadError: there is no such model.
    """
    if sys.platform != "linux":
        raise BenchError("the load benchmark needs Linux: it proves what is in the page cache")
    take, rounds = take or take_in_process, rounds or ROUNDS
    checkpoint = ModelLoader(config.model_config).checkpoint
    tasks = list(plan(config, checkpoint))
    say(f"load: {len(tasks)} cases, after one process of each way that is not counted")
    warm_up(tasks, take)
    taken = {_key(task): Taken() for task in tasks}
    try:
        for number, turn in enumerate(back_and_forth(tasks, rounds), start=1):
            say(f"load: round {number} of {rounds}")
            for task in turn:
                _take_into(taken[_key(task)], number, task, take)
    finally:
        for measurement in measurements(tasks, taken, checkpoint):
            record(measurement)
    _complain(tasks, taken)


def plan(config: EngineConfig, checkpoint: "Checkpoint") -> Iterator[Task]:
    """Every case, as the task of one sample of it.

    Raises:
        BenchError: the model has no safetensors files.
    """
    if not checkpoint.shards:
        raise BenchError(
            f"{config.model_config.model} has no safetensors files, which the load benchmark reads"
        )
    device = get_device().type
    ways = (*MODELS, "safetensors", "read", *(("pinned copy",) if device == "cuda" else ()))
    for cache, dtype, way in product(CACHES, dtypes(config), ways):
        yield Task(
            *(way, cache, dtype, str(checkpoint.folder.absolute()), device, allowed_cores()),
            options=_options(config) if way == "folovllm" else {},
        )


def dtypes(config: EngineConfig) -> tuple[str, ...]:
    """The data types to measure: that of the configuration, or the two that matter."""
    asked = config.model_config.torch_dtype
    return (str(asked).removeprefix("torch."),) if asked else DTYPES


def _options(config: EngineConfig) -> dict[str, object]:
    """What else was set of the engine; secrets have no place on a command line."""
    options: dict[str, object] = {}
    for attribute in ENGINE_CLASSES:
        part = getattr(config, attribute)
        not_here = {"model", "dtype", "revision", "hf_token"}
        options |= part.model_dump(mode="json", exclude_unset=True, exclude=not_here)
    if options.get("tokenizer") == config.model_config.model:
        del options["tokenizer"]
    return {name: value for name, value in options.items() if value is not None}


def _key(task: Task) -> tuple[str, str]:
    return case_of(task.dtype, task.cache), task.way


def case_of(dtype: str, cache: str) -> str:
    """A case as a reader would say it."""
    return f"{dtype}, {cache} page cache"


def warm_up(tasks: Iterable[Task], take: Take) -> None:
    """One sample of each way: the libraries' own files come into the page cache.

    Raises:
        BenchError: a way does not work at all.
    """
    for task in {task.way: task for task in reversed(list(tasks))}.values():
        take(task)


def _take_into(taken: Taken, number: int, task: Task, take: Take) -> None:
    """Take one sample; a case that failed once is not tried again."""
    if taken.failure is None:
        try:
            taken.samples[number] = take(task)
        except BenchError as error:
            taken.failure = str(error)


def take_in_process(task: Task) -> Sample:
    """A sample in a fresh process.

    Raises:
        BenchError: the process failed; the message has the last line that it wrote.
    """
    command = [sys.executable, "-m", "folovllm.bench.load_sample", json.dumps(asdict(task))]
    # The files are here: no side should ask the hub while the clock runs.
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(task.threads),
        "HF_HUB_OFFLINE": "1",
    }
    what = f"{task.way}, {case_of(task.dtype, task.cache)}"
    try:
        child = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=MOST_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{what}: still at it after {MOST_SECONDS} s") from None
    if child.returncode:
        lines = [line for line in child.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit code {child.returncode}"
        raise BenchError(f"{what}: {reason}")
    return Sample(**json.loads(child.stdout.splitlines()[-1]))


def measurements(
    tasks: Iterable[Task], taken: dict[tuple[str, str], Taken], checkpoint: "Checkpoint"
) -> Iterator[Measurement]:
    """What the samples come to, case by case; nothing of cases without any."""
    for task in tasks:
        case, way = _key(task)
        samples = taken[case, way].samples
        if not samples:
            continue
        values = list(samples.values())
        parameters: dict[str, float | str] = {
            "dtype": task.dtype,
            "cache": task.cache,
            "threads": task.threads,
            # Of the sample that was furthest from what it should be.
            "resident share": _furthest(task.cache, [s.resident_share for s in values]),
            "modules imported meanwhile": max(s.imported for s in values),
        }
        yield Measurement(
            *(SUITE, case, way, "ready", "s", "lower"),
            samples=[s.seconds for s in values],
            limits=_limits(taken, case, way, samples),
            parts={name: [s.parts[name] for s in values] for name in values[0].parts},
            parameters=parameters,
        )
        if way in MODELS:
            yield Measurement(
                *(SUITE, case, way, "peak memory", "bytes", "lower"),
                samples=[float(s.peak_memory) for s in values],
                limits=[float(weight_bytes(checkpoint, task.dtype))] * len(values),
                parameters=parameters,
            )


def _furthest(cache: State, shares: list[float]) -> float:
    return min(shares) if cache == "warm" else max(shares)


def _limits(
    taken: dict[tuple[str, str], Taken], case: str, way: str, samples: Iterable[int]
) -> list[float] | None:
    """The longer of reading the bytes and of copying them to the GPU, in the same round.

    None for those two themselves, and where one of them failed.
    """
    limits = [taken[case, name].samples for name in LIMITS if (case, name) in taken]
    if way in LIMITS or not all(number in each for number in samples for each in limits):
        return None
    return [max(each[number].seconds for each in limits) for number in samples]


def _complain(tasks: Iterable[Task], taken: dict[tuple[str, str], Taken]) -> None:
    """Say what went wrong, all of it; both sides must have loaded the same numbers, too."""
    problems = [each.failure for each in taken.values() if each.failure]
    for case in dict.fromkeys(_key(task)[0] for task in tasks):
        sides = [list(taken[case, way].samples.values()) for way in MODELS]
        ours, theirs = (side[0].answer if side else None for side in sides)
        if ours is not None and theirs is not None and abs(ours - theirs) > SAME_ANSWER:
            problems.append(
                f"{case}: folovllm and from_pretrained loaded different models: their first "
                f"tokens have log probabilities of {ours:.3f} and {theirs:.3f}"
            )
    if problems:
        raise BenchError("\n".join(problems))
