"""How long a model takes to load, beside transformers and beside the limit of reading it.

Each sample is a fresh process (`load_once.py`), and all cases are sampled in turn, so that what
else the machine does falls on all of them alike. The figures then go to pytest-benchmark, which
has its tables, its JSON and its comparison of runs for them. README.md says how to read them.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import folovllm
from benchmarks.sampling import CLOCK, hand_over
from folovllm.bench.session import Say
from folovllm.checkpoint import find_checkpoint

if sys.platform != "linux":
    pytest.skip("only Linux lets one prove what is in the page cache", allow_module_level=True)

Case = tuple[str, str, str]
"""State of the page cache, data type, way of loading."""
Sample = dict[str, Any]

DTYPES = ("float32", "bfloat16")
CACHES = ("warm", "cold")
WAYS = ("folovllm", "from_pretrained", "read")
CASES: list[Case] = list(product(CACHES, DTYPES, WAYS))
CHILD_TIMEOUT_S = 900


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The folder of the model to load: FOLOVLLM_MODEL's, else the default model's."""
    model = os.environ.get("FOLOVLLM_MODEL") or str(folovllm.ensure_demo_model())
    checkpoint = find_checkpoint(model)
    if not checkpoint.shards:
        pytest.fail(f"{model} has no safetensors files, which this benchmark reads", pytrace=False)
    return checkpoint.folder.absolute()


@pytest.fixture(scope="session")
def samples(
    model_folder: Path,
    rounds: int,
    threads: int,
    summary: list[str],
    say: Say,
) -> dict[Case, list[Sample]]:
    """All samples of all cases: one of each in turn, as often as there are rounds."""
    taken: dict[Case, list[Sample]] = {case: [] for case in CASES}
    for way in WAYS:  # brings the libraries' files into the page cache; not counted
        take(("warm", "float32", way), model_folder, threads)
    for number in range(1, rounds + 1):
        say(f"round {number} of {rounds}, load average {os.getloadavg()[0]:.2f}")
        # Back and forth: what a sample finds in memory depends on the one before it.
        for case in CASES if number % 2 else reversed(CASES):
            taken[case].append(take(case, model_folder, threads))
    check_same_model(taken)
    summary += summarize(taken, f"{model_folder.name}, {threads} threads, {rounds} rounds in turn")
    return taken


def take(case: Case, folder: Path, threads: int) -> Sample:
    """One sample, in a fresh process."""
    script = Path(__file__).with_name("load_once.py")
    command = [sys.executable, str(script), *case, str(folder)]
    command.append(f"--threads={threads}")
    # The files are here: no side should ask the hub while the clock runs.
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    load_average = os.getloadavg()[0]
    child = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=CHILD_TIMEOUT_S,
        check=False,
    )
    if child.returncode:
        pytest.fail(
            f"{'-'.join(case)}: exit code {child.returncode} of\n"
            f"{' '.join(command)}\n{child.stderr}",
            pytrace=False,
        )
    sample: Sample = json.loads(child.stdout.splitlines()[-1])
    return {**sample, "load_average": load_average}


def check_same_model(taken: dict[Case, list[Sample]]) -> None:
    """Both sides must have loaded the same numbers, or their times say nothing."""
    for dtype, cache in product(DTYPES, CACHES):
        ours, theirs = (taken[cache, dtype, way][0]["logits_norm"] for way in WAYS[:2])
        assert math.isclose(ours, theirs, rel_tol=1e-2), f"other logits in {dtype}"


@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.benchmark(timer=CLOCK)
def test_load(
    benchmark: BenchmarkFixture, samples: dict[Case, list[Sample]], threads: int, case: Case
) -> None:
    """To a model in evaluation mode; the limit is to read its files from begin to end."""
    benchmark.group = f"{case[1]}, {case[0]} page cache: load"
    hand_over_load(benchmark, samples[case], "load", threads)


@pytest.mark.parametrize("case", [case for case in CASES if case[2] != "read"], ids="-".join)
@pytest.mark.benchmark(timer=CLOCK)
def test_load_and_first_forward(
    benchmark: BenchmarkFixture, samples: dict[Case, list[Sample]], threads: int, case: Case
) -> None:
    """To the first token: mapped weights are read when they are used, so this is the total."""
    benchmark.group = f"{case[1]}, {case[0]} page cache: load and first forward"
    hand_over_load(benchmark, samples[case], "ready", threads)


def hand_over_load(
    benchmark: BenchmarkFixture, samples: list[Sample], quantity: str, threads: int
) -> None:
    """Give measured times to pytest-benchmark, as if it had measured them."""
    peaks = [sample[f"{quantity}_memory"]["peak"] for sample in samples]
    benchmark.extra_info |= {
        "threads": threads,
        "median_peak_bytes": median(peaks),
        "samples": samples,
    }
    hand_over(benchmark, [sample[f"{quantity}_s"] for sample in samples])


def summarize(taken: dict[Case, list[Sample]], what: str) -> list[str]:
    """The table that answers the question: ours, theirs, and the ratio of the pairs."""
    averages = [sample["load_average"] for samples in taken.values() for sample in samples]
    columns = "{:<41}{:>11}{:>17}  {:<22}{:>8}".format
    lines = [
        "",
        f"Model load: {what}, load average {min(averages):.1f} to {max(averages):.1f}",
        columns("medians", "FoloVLLM", "from_pretrained", "ratio (lowest-highest)", "reading"),
    ]
    for dtype, cache in product(DTYPES, CACHES):
        ours, theirs, limit = (taken[cache, dtype, way] for way in WAYS)
        reading = median(sample["load_s"] for sample in limit)
        for name, figure, unit in FIGURES:
            pairs = [(figure(a), figure(b)) for a, b in zip(ours, theirs, strict=True)]
            mine, other = (median(column) for column in zip(*pairs, strict=True))
            ratios = sorted(a / b for a, b in pairs)
            lines.append(
                columns(
                    f"{dtype}, {cache}: {name}",
                    unit.format(mine),
                    unit.format(other),
                    f"{median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})",
                    f"{reading:.3f} s" if unit == SECONDS else "",
                )
            )
    return lines


SECONDS, MEBIBYTES = "{:.3f} s", "{:.0f} MiB"
FIGURES: tuple[tuple[str, Callable[[Sample], float], str], ...] = (
    ("load", lambda sample: sample["load_s"], SECONDS),
    ("load + first forward", lambda sample: sample["ready_s"], SECONDS),
    ("peak memory", lambda sample: sample["ready_memory"]["peak"] / (1 << 20), MEBIBYTES),
)
