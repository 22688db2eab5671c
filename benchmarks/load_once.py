"""One sample of the load benchmark: load a model once, in this process, and print what it took.

A script for a fresh process; `test_model_load.py` starts it. The last line of its standard
output is a JSON object.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from page_cache import drop, read_through, resident_share

from folovllm.checkpoint import Checkpoint, find_checkpoint

COLD_AT_MOST, WARM_AT_LEAST = 0.05, 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", choices=["warm", "cold"])
    parser.add_argument("dtype", choices=["float32", "bfloat16"])
    parser.add_argument("way", choices=["folovllm", "from_pretrained", "read"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    checkpoint = find_checkpoint(str(arguments.folder))
    load, forward, versions = prepare(arguments, checkpoint)
    residency = set_cache(arguments.cache, checkpoint)

    known = set(sys.modules)
    reset = reset_peak()
    before = memory()
    start = time.perf_counter()
    model = load()
    loaded = time.perf_counter()
    after_load = memory()
    sample: dict[str, Any] = {
        "load_s": loaded - start,
        "load_memory": grown(before, after_load),
        "resident_share": residency,
        "peak_was_reset": reset,
        # Should be few and small: importing is not loading.
        "imported_in_load": sorted(set(sys.modules) - known),
        "versions": versions,
    }
    if forward:
        start = time.perf_counter()
        logits = forward(model)
        sample["first_forward_s"] = time.perf_counter() - start
        sample["ready_s"] = sample["load_s"] + sample["first_forward_s"]
        sample["ready_memory"] = grown(before, memory())
        sample["logits_norm"] = logits.double().norm().item()
    sys.stdout.write("\n" + json.dumps(sample) + "\n")


def prepare(
    arguments: argparse.Namespace, checkpoint: Checkpoint
) -> tuple[Callable[[], Any], Callable[[Any], Any] | None, dict[str, str]]:
    """What to time, with everything imported that it needs; the versions of that."""
    if arguments.way == "read":
        return lambda: read_through(checkpoint.shards), None, {}

    import torch
    import transformers

    torch.set_num_threads(arguments.threads)
    for architecture in checkpoint.config.get("architectures") or ():
        getattr(transformers, architecture, None)  # imports the model's own module
    if arguments.way == "folovllm":
        import folovllm.direct_load  # noqa: F401 - the loader imports it when it loads
        from folovllm import ModelConfig, ModelLoader

        config = ModelConfig(model=str(arguments.folder), dtype=arguments.dtype)

        def load() -> Any:
            return ModelLoader(config).load_model("cpu")
    else:
        from transformers import AutoModelForCausalLM

        def load() -> Any:
            dtype = getattr(torch, arguments.dtype)
            return AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=dtype).eval()

    def forward(model: Any) -> Any:
        # One token: all the weights are needed, and little else is done with them.
        with torch.inference_mode():
            return model(torch.ones(1, 1, dtype=torch.long)).logits

    packages = ("torch", "transformers", "safetensors", "folovllm")
    return load, forward, {name: installed_version(name) for name in packages}


def installed_version(package: str) -> str:
    if package == "folovllm":  # may run from its sources
        import folovllm

        return folovllm.__version__
    return version(package)


def set_cache(cache: str, checkpoint: Checkpoint) -> float:
    """Make the page cache warm or cold; the share of the weights that is in it, as proof."""
    files = [path for path in checkpoint.folder.iterdir() if path.is_file()]
    if cache == "cold":
        drop(files)
    else:
        read_through(files)
    share = resident_share(checkpoint.shards)
    if cache == "cold" and share > COLD_AT_MOST:
        sys.exit(
            f"not cold: {share:.0%} of the weights are still in the page cache. Has another "
            "process mapped them, or does this file system keep its pages?"
        )
    if cache == "warm" and share < WARM_AT_LEAST:
        sys.exit(f"not warm: only {share:.0%} of the weights fit into the page cache")
    return share


def reset_peak() -> bool:
    """Forget the peak of the imports, so that VmHWM is that of what follows."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return True
    return False


def memory() -> dict[str, int]:
    """Resident memory now and at its peak, in bytes.

    Not `ru_maxrss`: that one may be the parent process's, which it starts from.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    names = {"peak": "VmHWM", "now": "VmRSS", "anonymous": "RssAnon", "file": "RssFile"}
    return {name: int(fields[field]) * 1024 for name, field in names.items()}


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """What was taken since: at the peak, and at the end in all, anonymous and file-mapped."""
    return {name: after[name] - before["now" if name == "peak" else name] for name in after}


if __name__ == "__main__":
    main()
