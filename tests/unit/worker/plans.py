"""Plans made by hand, as a scheduler would make them, and a tiny model to run them on."""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from folovllm.attention.sdpa import SdpaBackend
from folovllm.core.plan import NewSequence, ScheduledSequence, StepPlan
from folovllm.models.hf_adapter import PagedModel
from folovllm.sampling.sampler import Sampler
from folovllm.sampling_params import SamplingSpec
from folovllm.worker.kv_cache import KVCache
from folovllm.worker.model_runner import ModelRunner

GREEDY = SamplingSpec(temperature=0)


def new(seq_id, spec=GREEDY, prompt=(), index=0):
    return NewSequence(seq_id, index, spec, tuple(prompt))


def part(seq_id, start, token_ids, blocks=(), first=0, samples=None, targets=(), drafts=0):
    """A part of a sequence that is sampled from, unless `samples` says otherwise."""
    samples = (seq_id,) if samples is None else tuple(samples)
    return ScheduledSequence(
        *(seq_id, start, tuple(token_ids), first, tuple(blocks), samples, drafts, tuple(targets))
    )


def plan(*entries, meet=(), **moves):
    return StepPlan(tuple(entries), tuple(meet), **moves)


def tiny_llama(vocab_size=96):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def make_runner(model, num_blocks=40, num_host_blocks=0, block_size=4, graphs=None):
    """A runner of a transformers model on the CPU, which is changed for good."""
    paged = PagedModel(model)
    sizes = num_blocks, num_host_blocks, block_size
    cache = KVCache(paged.layers, *sizes, paged.dtype, paged.device)
    sampler = Sampler(paged.vocab_size, paged.device, seed=0)
    return ModelRunner(paged, cache, SdpaBackend(), sampler, block_size, graphs)
