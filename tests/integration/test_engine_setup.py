"""What really runs is decided once, and the caller's configuration stays as it was given."""

import dataclasses
import logging

import pytest
import torch

from folovllm import EngineConfig, ModelConfig, SamplingParams, SchedulerConfig
from folovllm.engine.assemble import resolve_setup
from folovllm.engine.llm_engine import LLMEngine

pytestmark = pytest.mark.usefixtures("one_thread")


def contents(config):
    parts = (config.model_config, config.cache_config, config.scheduler_config)
    return [(part.model_dump(), part.asked_fields) for part in parts]


def test_the_callers_configuration_stays_as_it_was(tiny_folder):
    config = EngineConfig.from_options(model=str(tiny_folder()), cpu_kvcache_space=0.1)
    before = contents(config)
    engine = LLMEngine(config, "cpu")
    assert engine.config is config
    assert contents(config) == before
    assert config.model_config.max_model_len is None
    assert engine.setup.max_model_len == 64


def test_every_value_has_a_reason(tiny_folder, caplog):
    caplog.set_level(logging.INFO, "folovllm")
    config = EngineConfig.from_options(
        model=str(tiny_folder()), dtype="float32", block_size=4, num_gpu_blocks_override=9
    )
    setup = LLMEngine(config, "cpu").setup
    names = {each.name for each in dataclasses.fields(setup)} - {"reasons"}
    assert set(setup.reasons) == names
    assert all(setup.reasons.values())
    assert (setup.device, setup.dtype) == (torch.device("cpu"), torch.float32)
    assert (setup.block_size, setup.num_blocks, setup.vocab_size) == (4, 9, 96)
    assert sum(setup.linear_backends.values()) > 0
    messages = caplog.messages
    assert "block_size: 4 (asked for (argument block_size))" in messages
    assert "max_model_len: 64 (the checkpoint's max_position_embeddings)" in messages
    assert sum(message.startswith(f"{name}: ") for message in messages for name in names) == len(
        names
    )


def test_a_cache_shorter_than_the_models_length_is_told_once(tiny_folder, caplog):
    config = EngineConfig.from_options(
        model=str(tiny_folder()), block_size=4, num_gpu_blocks_override=9
    )
    engine = LLMEngine(config, "cpu")
    told = [message for message in caplog.messages if "ends there" in message]
    assert [message.split(":")[0] for message in told] == [
        "the KV cache holds 32 tokens, fewer than the 64 of max_model_len"
    ]
    engine.add_request("0", [5], SamplingParams(max_tokens=None, ignore_eos=True))
    while engine.has_unfinished_requests():
        outputs = engine.step()
    [completion] = outputs[0].outputs
    assert (len(completion.token_ids), completion.finish_reason) == (31, "length")


def test_of_two_lengths_the_smaller_holds(tiny_folder):
    config = EngineConfig(
        model_config=ModelConfig(model=str(tiny_folder()), max_model_len=50),
        scheduler_config=SchedulerConfig(max_model_len=20),
    )
    engine = LLMEngine(config, "cpu")
    assert engine.setup.max_model_len == 20
    assert engine.setup.reasons["max_model_len"].endswith("less than the 50 of ModelConfig")
    with pytest.raises(ValueError, match="max_model_len is 20"):
        engine.add_request("0", [5] * 20, SamplingParams())


def test_a_length_beyond_the_checkpoints_is_warned_of(tiny_folder, caplog):
    config = EngineConfig(
        model_config=ModelConfig(model=str(tiny_folder())),
        scheduler_config=SchedulerConfig(max_model_len=100),
    )
    assert resolve_setup(config, "cpu").max_model_len == 100
    assert "max_model_len is 100, but" in caplog.text


def test_resolving_makes_what_the_engine_is_made_with(tiny_folder):
    config = EngineConfig.from_options(model=str(tiny_folder()), num_gpu_blocks_override=9)
    assert resolve_setup(config, "cpu") == LLMEngine(config, "cpu").setup
