"""What really runs: each value of an engine's setup, and the reason that is given."""

from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

from folovllm.attention.sdpa import SdpaBackend
from folovllm.config import EngineConfig, ModelConfig, SchedulerConfig
from folovllm.engine import resolve
from folovllm.engine.resolve import (
    device_reason,
    dtype_reason,
    graph_maker,
    resolve_batched_tokens,
    resolve_block_size,
    resolve_graph_sizes,
    resolve_linear_backends,
    resolve_max_model_len,
    resolve_stop_token_ids,
)
from folovllm.errors import ConfigError
from folovllm.loading.length import PositionLimit

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def config(**options):
    return EngineConfig.from_options(model="m", **options)


@pytest.mark.parametrize(
    ("given", "expected"), [(None, ()), (7, (7,)), (0, (0,)), ([2, 5, 2], (2, 5)), (9, ())], ids=str
)
def test_ids_that_end_a_sequence(given, expected):
    ids, reason = resolve_stop_token_ids(GenerationConfig(eos_token_id=given), 9)
    assert ids == expected
    assert ("names no further ones" in reason) is (expected == ())


ASKED = "asked for (argument max_num_batched_tokens)"
WHOLE = "max_model_len: without chunks a whole prompt must fit"


@pytest.mark.parametrize(
    ("options", "device", "expected"),
    [
        ({}, "cpu", (512, "what suits a CPU")),
        ({}, "cuda", (8192, "what suits a GPU")),
        ({}, "mps", (2048, "what suits other devices")),
        ({"max_num_batched_tokens": 7}, "cpu", (7, ASKED)),
        ({"enable_chunked_prefill": False}, "cpu", (4096, WHOLE)),
        ({"enable_chunked_prefill": False}, "cuda", (8192, "what suits a GPU")),
        ({"enable_chunked_prefill": False, "max_num_batched_tokens": 4096}, "cpu", (4096, ASKED)),
    ],
    ids=str,
)
def test_tokens_of_a_step(options, device, expected):
    scheduler_config = config(**options).scheduler_config
    assert resolve_batched_tokens(scheduler_config, device, 4096) == expected


def test_a_budget_below_the_longest_prompt_needs_chunks():
    whole = config(enable_chunked_prefill=False, max_num_batched_tokens=63).scheduler_config
    with pytest.raises(ConfigError, match=r"max_num_batched_tokens: got 63.*max_model_len, 64"):
        resolve_batched_tokens(whole, "cpu", 64)


@pytest.mark.parametrize(
    ("asked", "counts", "reason"),
    [
        (None, {"onednn": 7, "plain": 2}, "the first that serve the 9 layers"),
        ("plain", {"plain": 9}, "asked for (argument linear_backend)"),
        (
            "onednn",
            {"onednn": 7, "plain": 2},
            "asked for (argument linear_backend), but for 2 layers that the model's code reads",
        ),
    ],
)
def test_what_computes_linear_layers(asked, counts, reason):
    options = {} if asked is None else {"linear_backend": asked}
    assert resolve_linear_backends(config(**options).model_config, counts) == (counts, reason)


def test_block_size(monkeypatch):
    cache = config().cache_config
    assert (cache.block_size, cache.asked_block_size) == (16, None)
    flash = SimpleNamespace(name="flash", block_size=256)
    assert resolve_block_size(cache, flash) == (256, "the flash backend's preference")
    # The same number, asked for.
    cache = config(block_size=16).cache_config
    assert resolve_block_size(cache, flash) == (16, "asked for (argument block_size)")
    monkeypatch.setenv("FOLOVLLM_BLOCK_SIZE", "32")
    reason = "asked for (variable FOLOVLLM_BLOCK_SIZE)"
    assert resolve_block_size(config().cache_config, SdpaBackend()) == (32, reason)


ASKED_LENGTH = "asked for (argument max_model_len)"


def length_of(model=None, scheduler=None, longest=64, tokenizer=10**30, limit=None):
    """The length of a model that has so many positions, resolved."""
    configured = EngineConfig(
        model_config=ModelConfig(model="m", max_model_len=model),
        scheduler_config=SchedulerConfig(max_model_len=scheduler),
    )
    text = SimpleNamespace(max_position_embeddings=longest, model_type="some")
    hf_model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    loaded = SimpleNamespace(
        model=SimpleNamespace(model=hf_model, name="Some (some)", position_limit=limit),
        tokenizer=SimpleNamespace(model_max_length=tokenizer),
    )
    return resolve_max_model_len(configured, loaded)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (64, "the checkpoint's max_position_embeddings")),
        ({"longest": None}, (2048, "the default: the checkpoint names no max_position_embeddings")),
        ({"tokenizer": 20}, (20, "the tokenizer's model_max_length")),
        ({"limit": PositionLimit(20, "no more")}, (20, "the model: no more")),
        ({"model": 20, "limit": PositionLimit(20, "no more")}, (20, ASKED_LENGTH)),
        ({"model": 99, "tokenizer": 20}, (99, ASKED_LENGTH)),  # the loader warns of the 64
        ({"model": 9}, (9, "asked for (argument max_model_len)")),
        ({"scheduler": 9}, (9, "asked for (argument max_model_len)")),
        ({"model": 9, "scheduler": 9}, (9, "asked for (argument max_model_len)")),
        (
            {"model": 9, "scheduler": 8},
            (8, "asked for (argument max_model_len), and less than the 9 of ModelConfig"),
        ),
        (
            {"model": 7, "scheduler": 8},
            (7, "asked for (argument max_model_len), and less than the 8 of SchedulerConfig"),
        ),
    ],
    ids=str,
)
def test_the_longest_sequence(given, expected):
    assert length_of(**given) == expected


@pytest.mark.parametrize("part", ["model", "scheduler"])
def test_positions_that_a_model_does_not_have_are_refused(part):
    limit = PositionLimit(20, "it has learned 20 positions")
    with pytest.raises(
        ConfigError, match=r"max_model_len: got 21; Some \(some\) takes 1 to 20: it has learned 20"
    ):
        length_of(**{part: 21}, limit=limit)


def test_why_the_model_is_where_it_is():
    assert device_reason("cpu", CPU) == "asked for"
    assert device_reason(None, CPU) == "torch finds no GPU"
    assert device_reason(None, CUDA) == "torch finds a GPU"
    assert dtype_reason(config(dtype="half").model_config, CPU) == "asked for (argument dtype)"
    assert dtype_reason(config().model_config, CPU) == "what suits a CPU"
    assert "half type" in dtype_reason(config().model_config, CUDA)


def sizes_of(device, captures=True, **options):
    attention = SimpleNamespace(name="some", captures=captures)
    return resolve_graph_sizes(config(**options), device, attention)


def test_graphs_where_they_can_be_captured():
    assert sizes_of(CUDA, max_num_seqs=5) == ((1, 2, 4, 5), "vLLM's sizes, up to max_num_seqs")
    assert sizes_of(CPU) == ((), "CUDA graphs are for GPUs")
    eager = "enforce_eager, asked for (argument enforce_eager)"
    assert sizes_of(CUDA, enforce_eager=True) == ((), eager)
    assert sizes_of(CUDA, captures=False) == ((), "the some backend cannot be captured")


def test_graphs_are_made_on_the_models_device(monkeypatch):
    devices = []
    monkeypatch.setattr(resolve, "CudaCapture", devices.append)
    monkeypatch.setattr(resolve, "free_cuda_memory", devices.append)
    maker = graph_maker(SimpleNamespace(device=CUDA), SdpaBackend(), (1, 2), 16, 64)
    assert (maker.sizes, maker.block_size, maker.max_model_len) == ((1, 2), 16, 64)
    maker.new_capture()
    maker.free_memory()
    assert devices == [CUDA, CUDA]
