"""A run with all suites, as a machine of two cores leaves it; the figures are made up."""

import numpy as np

from folovllm.bench.results import Measurement, Run

MACHINE = {
    "os": {"name": "Debian GNU/Linux 12 (bookworm)", "kernel": "6.1.0-28-amd64", "container": True},
    "cpu": {
        "model": "AMD EPYC 7763 64-Core Processor",
        "architecture": "x86_64",
        "instruction_sets": ["avx", "avx2", "f16c", "fma"],
        "logical_cores": 4,
        "allowed_cores": 2,
    },
    "memory": {"total": 16 * 2**30, "available": 12 * 2**30, "cgroup_limit": 8 * 2**30},
    "python": "CPython 3.11.7",
    "packages": {"folovllm": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
    "commit": "8e55589-dirty",
    "torch": {"version": "2.13.0+cpu", "cuda": None, "threads": 2, "instruction_set": "AVX2"},
    "thread_variables": {"OMP_NUM_THREADS": "2"},
    "gpus": [],
}
SETTINGS = {"model": "SmolLM2-135M-Instruct-f16.gguf", "dtype": "float32", "rounds": 5}


def example_run(*, slower: float = 1.0, seed: int = 0) -> Run:
    """All suites.

    Args:
        slower: what folovllm's times are multiplied by.
        seed: of the noise.
    """
    random = np.random.default_rng(seed)
    run = Run("2026-11-21T17:32:00+00:00", MACHINE, SETTINGS, 523.4, partial=False)
    run.limits = {
        "start": {"bandwidth": 3.41e10, "rate": 1.52e11},
        "end": {"bandwidth": 3.29e10, "rate": 1.49e11},
    }

    def noisy(value: float, count: int = 5, noise: float = 0.04) -> list[float]:
        return (value * random.lognormal(0, noise, count)).tolist()

    def ours(way: str) -> float:
        return slower if way == "folovllm" else 1.0

    for add in (_load, _latency, _throughput, _sweep):
        add(run, noisy, ours)
    return run


def _load(run, noisy, ours):
    phases = {
        "folovllm": {
            "config and tokenizer": 0.22,
            "weights read": 0.31,
            "weights placed": 0.24,
            "first forward": 0.14,
        },
        "from_pretrained": {
            "config and tokenizer": 0.81,
            "weights read": 0.7,
            "weights placed": 3.6,
            "first forward": 0.2,
        },
        "safetensors": {"weights read": 0.5},
        "read": {"weights read": 0.29},
    }
    for case, factor in (("float32, cold page cache", 1.6), ("float32, warm page cache", 1.0)):
        for way, parts in phases.items():
            taken = {part: noisy(value * factor * ours(way)) for part, value in parts.items()}
            ready = np.sum([*taken.values()], axis=0).tolist()
            limits = noisy(0.29 * factor) if way in ("folovllm", "from_pretrained") else None
            run.add(Measurement("load", case, way, "ready", "s", "lower", ready, limits, taken))
    for way, value in (("folovllm", 620), ("from_pretrained", 1190), ("safetensors", 530)):
        peak = noisy(value * 2**20, noise=0.002)
        case = "float32, cold page cache"
        run.add(Measurement("load", case, way, "peak memory", "bytes", "lower", peak))


def _latency(run, noisy, ours):
    for length in (16, 64, 256, 1024, 1900):
        samples, case = (
            noisy((0.03 + length / 560) * ours("folovllm"), 12),
            f"prompt of {length} tokens",
        )
        floors = noisy(length / 610 + 0.015, 12, 0)
        run.add(
            Measurement(
                "latency",
                case,
                "folovllm",
                "time to first token",
                "s",
                "lower",
                samples,
                floors,
                parameters={"prompt": length},
            )
        )
    points = [(batch, 128) for batch in (1, 2, 4, 8, 16, 32)] + [(1, 512), (1, 1024), (1, 1900)]
    for batch, context in points:
        value = (0.021 + 0.0035 * batch + 4e-6 * context) * ours("folovllm")
        samples, case = noisy(value, 40, 0.08), f"batch of {batch}, context of {context}"
        run.add(
            Measurement(
                "latency",
                case,
                "folovllm",
                "time per output token",
                "s",
                "lower",
                samples,
                noisy(value * 0.6, 40, 0),
                parameters={"batch": batch, "context": context},
            )
        )


def _throughput(run, noisy, ours):
    cases = {
        "single": (
            "1 request, 128 tokens in, 128 out",
            1,
            128,
            {"folovllm": 3.4, "transformers": 8.7},
            2.0,
        ),
        "prefill": (
            "1 request, 1024 tokens in, 1 out",
            1,
            1,
            {"folovllm": 1.93, "transformers": 2.35},
            1.7,
        ),
        "batch": (
            "32 requests at once, 16-256 tokens in, 16-128 out",
            32,
            2211,
            {"folovllm": 16.4, "transformers": 45.2},
            11.6,
        ),
        "prefix": (
            "16 requests, 512 tokens in common and 32 of their own, 32 out, cold cache",
            16,
            512,
            {"folovllm": 4.4, "transformers": 26.1},
            2.6,
        ),
    }
    for case, (text, requests, tokens, ways, floor) in cases.items():
        parameters = {"workload": text, "requests": requests, "output tokens": tokens}
        for way, seconds in ways.items():
            times = noisy(seconds * ours(way), 3)
            floors = noisy(floor, 3, 0.01) if way == "folovllm" else None
            rates = [tokens / time for time in times]
            most = floors and [tokens / each for each in floors]
            run.add(
                Measurement(
                    "throughput",
                    case,
                    way,
                    "time",
                    "s",
                    "lower",
                    times,
                    floors,
                    parameters=parameters,
                )
            )
            run.add(
                Measurement(
                    "throughput",
                    case,
                    way,
                    "output tokens",
                    "tok/s",
                    "higher",
                    rates,
                    most,
                    parameters=parameters,
                )
            )


def _sweep(run, noisy, ours):
    goal = "first token within 2000 ms, 200 ms a token"
    for rate in (None, 0.49, 0.98, 1.47, 1.96, 2.45):
        served = min(rate or 9, 1.96 / ours("folovllm"))
        good = served if served == rate and served < 1.9 else 0.3
        parameters = {"goal": goal, "requests": 24} | ({"rate": rate} if rate else {})
        case = f"{rate:.3g} requests/s" if rate else "all at once"

        def add(metric, unit, better, samples, case=case, parameters=parameters):
            run.add(
                Measurement(
                    "sweep", case, "folovllm", metric, unit, better, samples, parameters=parameters
                )
            )

        add("output tokens", "tok/s", "higher", [served * 69])
        add("requests", "requests/s", "higher", [served])
        add("goodput", "requests/s", "higher", [good])
        crowd = 0.2 + 3 * max(0.0, (rate or 3) - 1.5)
        add("time to first token", "s", "lower", noisy(crowd, 24, 0.4))
        add("time per output token", "s", "lower", noisy(0.03 + 0.02 * served, 24, 0.1))
    rule = f"the highest rate up to which 90% of the requests get their {goal}"
    run.add(
        Measurement(
            "sweep",
            "knee",
            "folovllm",
            "rate",
            "requests/s",
            "higher",
            [1.47],
            parameters={"rule": rule},
        )
    )
