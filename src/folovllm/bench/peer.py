"""transformers' `generate`, beside which the engine is measured."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from folovllm.bench.results import BenchError
from folovllm.bench.throughput import Way
from folovllm.bench.workloads import Workload
from folovllm.config import ModelConfig
from folovllm.errors import explain_load_errors, is_out_of_memory

PEER = "transformers"


def transformers_way(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Way:
    """Generate with transformers, all prompts of a workload in one batch, padded on the left.

    The batch goes on until its longest output is done: the tokens that the others get meanwhile
    nobody asked for, and they are not counted. That is what static batching costs.

    Args:
        config: says which model.
        dtype: of its weights.
        device: where.

    Raises:
        ModelLoadError: the model cannot be loaded by transformers.
    """
    model = _load(config, dtype, device)

    @torch.inference_mode()
    def generate(workload: Workload) -> int:
        longest, new = max(map(len, workload.prompts)), max(workload.output_lens)
        ids = torch.zeros(len(workload.prompts), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(workload.prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        try:
            output = model.generate(
                ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            ).cpu()
        except (RuntimeError, MemoryError) as error:
            raise _explained(error, len(workload.prompts), longest + new) from error
        cut = longest + new - output.shape[1]
        return sum(max(0, min(count, new - cut)) for count in workload.output_lens)

    return generate


def _load(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Any:
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    place = Path(config.model)
    if place.suffix == ".gguf":
        options["gguf_file"], place = place.name, place.parent
    if config.revision is not None:
        options["revision"] = config.revision
    name = str(place) if place.exists() else config.model
    with explain_load_errors(f"transformers cannot load {config.model}"):
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **options)
        return model.to(device).eval()


def _explained(error: RuntimeError | MemoryError, count: int, length: int) -> Exception:
    if not is_out_of_memory(error):
        return error
    return BenchError(
        f"transformers ran out of memory with a batch of {count} sequences of {length} tokens: "
        "take fewer requests, lower gpu_memory_utilization or cpu_kvcache_space, or leave it out "
        "(--no-peer)"
    )
