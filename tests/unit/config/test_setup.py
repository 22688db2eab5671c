"""`EngineSetup`, and where the configuration's values come from."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch

from folovllm.config import CacheConfig, SchedulerConfig
from folovllm.config.setup import EngineSetup, as_configured


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """No variable of ours, and no `.env` but the test's own."""
    for name in [name for name in os.environ if name.upper().startswith("FOLOVLLM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def make_setup(**values):
    defaults = {
        "model": "m",
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "kv_cache_dtype": torch.bfloat16,
        "attention_backend": "sdpa",
        "linear_backends": {"oneDNN": 8, "plain": 1},
        "block_size": 16,
        "max_model_len": 64,
        "max_num_batched_tokens": 512,
        "max_num_seqs": 8,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": False,
        "policy": "fcfs",
        "num_blocks": 10,
        "num_host_blocks": 0,
        "vocab_size": 96,
        "eos_token_id": 1,
        "stop_token_ids": (5, 7),
        "graph_sizes": (),
        "seed": 0,
    }
    return EngineSetup(**{**defaults, **values})


def test_nothing_of_it_changes():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_setup().block_size = 8


def test_a_sequence_ends_at_the_first_of_two_limits():
    assert make_setup().longest_sequence == 64
    full = make_setup(num_blocks=4)
    assert full.longest_sequence == full.cache_tokens == 48


def test_all_ids_that_end_a_sequence():
    assert make_setup().eos_token_ids == {1, 5, 7}
    assert make_setup(eos_token_id=None).eos_token_ids == {5, 7}


def test_in_plain_types():
    setup = make_setup(graph_sizes=(1, 2), reasons={"seed": "the default"})
    content = setup.as_dict()
    assert json.loads(json.dumps(content)) == content
    assert set(content) == {each.name for each in dataclasses.fields(setup)} - {"reasons"}
    assert (content["device"], content["dtype"]) == ("cpu", "float32")
    assert (content["graph_sizes"], content["linear_backends"]) == (
        [1, 2],
        {"oneDNN": 8, "plain": 1},
    )


def test_as_text():
    reasons = {"block_size": "the sdpa backend's preference"}
    setup = make_setup(graph_sizes=(1, 2, 4, *range(8, 257, 8)), reasons=reasons)
    rows = {name: (value, reason) for name, value, reason in setup.rows()}
    assert rows["block_size"] == ("16", "the sdpa backend's preference")
    assert rows["linear_backends"] == ("oneDNN: 8, plain: 1", "")
    assert rows["stop_token_ids"][0] == "5, 7"
    assert rows["graph_sizes"][0] == "1, 2, 4, 8, ..., 256"
    assert dict(make_setup().as_dict())["graph_sizes"] == []
    assert "none" in [value for name, value, _ in make_setup().rows() if name == "graph_sizes"]


def test_the_origin_of_a_value(monkeypatch):
    monkeypatch.setenv("FOLOVLLM_SWAP_SPACE", "2")
    Path(".env").write_text("# mine\nFOLOVLLM_CPU_KVCACHE_SPACE=1\n")
    cache = CacheConfig(block_size=32)
    assert cache.origin("block_size") == "argument block_size"
    assert cache.origin("swap_space") == "variable FOLOVLLM_SWAP_SPACE"
    assert cache.origin("cpu_kvcache_space") == ".env:2 FOLOVLLM_CPU_KVCACHE_SPACE"
    assert cache.origin("enable_prefix_caching") == "default"
    assert cache.asked_fields == {"block_size", "swap_space", "cpu_kvcache_space"}
    assert as_configured(cache, "swap_space") == (2.0, "asked for (variable FOLOVLLM_SWAP_SPACE)")
    assert as_configured(cache, "enable_prefix_caching") == (True, "the default")
    # What is passed, assigned or copied over a variable is no longer the variable's.
    assert CacheConfig(swap_space=2).origin("swap_space") == "argument swap_space"
    cache.swap_space = 3
    assert cache.origin("swap_space") == "argument swap_space"
    copied = CacheConfig().model_copy(update={"num_gpu_blocks_override": 4})
    assert copied.origin("num_gpu_blocks_override") == "argument num_gpu_blocks_override"


def test_a_block_size_that_was_asked_for(monkeypatch):
    assert CacheConfig().block_size == 16
    assert CacheConfig().asked_block_size is None
    assert CacheConfig(block_size=16).asked_block_size == 16
    monkeypatch.setenv("FOLOVLLM_BLOCK_SIZE", "8")
    assert CacheConfig().asked_block_size == 8
    assert SchedulerConfig().asked_fields == frozenset()
