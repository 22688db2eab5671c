"""The engine over a flash-attn that is played: its choice, its blocks, its tokens."""

import logging
import sys

import pytest

from folovllm import LLM, ConfigError, EngineConfig, SamplingParams
from folovllm.attention import flash
from folovllm.engine import assemble
from folovllm.engine.llm_engine import LLMEngine
from tests.unit.attention.played_flash import make_module

pytestmark = pytest.mark.usefixtures("one_thread")

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
PROMPTS = [[5, 7, 9], [*range(20, 50)], [40], [*range(20, 50), 3]]


@pytest.fixture
def played(monkeypatch):
    """The CPU passes for a GPU."""
    monkeypatch.setitem(sys.modules, "flash_attn", make_module())
    monkeypatch.setattr(flash, "_device_refusal", lambda device: None)


@pytest.fixture
def run(tiny_folder):
    """A function that makes an engine and gives it with its tokens."""

    def run(family, dtype="bfloat16", **options):
        options = {"cpu_kvcache_space": 0.25, **options}
        llm = LLM(str(tiny_folder(family)), device="cpu", dtype=dtype, **options)
        outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
        return llm, [out.outputs[0].token_ids for out in outputs]

    return run


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 7}], ids=["whole", "chunked"])
def test_is_chosen_by_itself_and_gives_the_same(run, caplog, family, options):
    caplog.set_level(logging.INFO, "folovllm")
    llm, tokens = run(family, **options)
    assert "attention_backend: flash (the first choice)" in caplog.messages
    assert "block_size: 256 (the flash backend's preference)" in caplog.messages
    setup = llm.llm_engine.setup
    assert (setup.attention_backend, setup.block_size) == ("flash", 256)
    assert tokens == run(family, attention_backend="sdpa", **options)[1]


@pytest.mark.usefixtures("played")
def test_a_block_size_that_was_asked_for(run, caplog):
    caplog.set_level(logging.INFO, "folovllm")
    llm, _ = run("llama", block_size=16)
    assert llm.llm_engine.setup.attention_backend != "flash"
    assert "flash reads blocks of multiples of 256 tokens, not of 16" in caplog.text
    with pytest.raises(ConfigError, match=r"flash reads blocks .*FOLOVLLM_BLOCK_SIZE=256 would do"):
        run("llama", block_size=16, attention_backend="flash")


@pytest.mark.usefixtures("played")
def test_sinks_are_left_to_another(run):
    llm, _ = run("gpt_oss")
    assert llm.llm_engine.setup.attention_backend != "flash"


def test_is_refused_before_the_model_is_loaded(monkeypatch, tiny_folder):
    monkeypatch.setattr(assemble, "ModelLoader", lambda *_: pytest.fail("was loaded"))
    with pytest.raises(ConfigError, match=r"attention_backend: flash needs a CUDA device.* sdpa"):
        LLM(str(tiny_folder()), device="cpu", attention_backend="flash")


def test_a_configuration_may_serve_two_engines(tiny_folder, monkeypatch, request):
    """The block size that the first one's backend took is not asked of the second."""
    config = EngineConfig.from_options(
        model=str(tiny_folder()), dtype="bfloat16", cpu_kvcache_space=0.25
    )
    request.getfixturevalue("played")
    assert LLMEngine(config, "cpu").setup.block_size == 256
    monkeypatch.undo()
    assert LLMEngine(config, "cpu").setup.block_size == 16
