"""Tiny checkpoints of real architectures, made in the test: nothing is downloaded."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from folovllm import LLM
from folovllm.core.plan import StepPlan, StepResult
from folovllm.engine import cache_size
from folovllm.executor.local import LocalExecutor

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "slept", ".", "<eos>"]

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}

# What each family needs beyond, or in place of, the small sizes.
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 8},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 8},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8},
    "phi": {"num_key_value_heads": 4},
    "phi3": {},
    "olmo": {},
    "olmo2": {},
    "gpt2": {},
    "gpt_neox": {},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 24, **MOE},
    "qwen3_moe": {"num_experts": 4, "head_dim": 16, **MOE},
}

MLA = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "moe_intermediate_size": 24,
    "num_key_value_heads": 4,
}

# What the engine is tried with beyond.
MORE_FAMILIES: dict[str, dict[str, object]] = {
    "gpt_oss": {"num_local_experts": 4, "head_dim": 16, "sliding_window": 8, **MOE},
    "granite": {},
    "cohere": {},
    "cohere2": {"sliding_window": 8},
    "starcoder2": {},
    "glm": {"head_dim": 16},
    "glm4": {"head_dim": 16},
    "olmo3": {"sliding_window": 8},
    "opt": {},
    "smollm3": {},
    "deepseek_v3": MLA,
    "exaone4": {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]},
    "granitemoehybrid": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["full_attention"] * 2,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
    },
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "head_dim": 16},
    "longcat_flash": {
        **MLA,
        "num_hidden_layers": 2,
        "num_layers": 1,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 24,
        "moe_topk": 2,
        "zero_expert_num": 2,
        "head_dim": 8,
    },
}


def make_config(family: str, **overrides: object) -> object:
    """A configuration of a family with everything small."""
    known = {**FAMILIES, **MORE_FAMILIES}
    options = {**SMALL, **known.get(family, {}), **overrides}
    return AutoConfig.for_model(family, **{k: v for k, v in options.items() if v is not None})


def tiny_tokenizer(eos: str | None = "<eos>", **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer that knows ten words."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="."))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, **special)


def write_tiny(
    folder: Path,
    family: str,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    **overrides: object,
) -> Path:
    """Write a tiny random model and its tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(family, **overrides), dtype=dtype)
    for parameter in model.parameters():  # biases and norms too: zeros and ones hide mistakes
        torch.nn.init.normal_(parameter.data, std=0.2)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tiny_tokenizer().save_pretrained(folder)
    return folder


SaveTiny = Callable[..., Path]


@pytest.fixture
def tiny_config() -> Callable[..., object]:
    """A function that gives the small configuration of a family."""
    return make_config


@pytest.fixture
def save_tiny(tmp_path: Path) -> SaveTiny:
    """A function that writes a tiny random model and its tokenizer and returns the folder."""

    def save(
        family: str = "llama",
        dtype: torch.dtype = torch.float32,
        name: str = "model",
        max_shard_size: str = "1GB",
        **overrides: object,
    ) -> Path:
        return write_tiny(tmp_path / name, family, dtype, max_shard_size, **overrides)

    return save


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that gives the folder of a tiny model, made once for the same arguments."""
    root = tmp_path_factory.mktemp("models")
    folders: dict[str, Path] = {}

    def get(family: str = "llama", **overrides: object) -> Path:
        name = repr((family, sorted(overrides.items())))
        if name not in folders:
            folders[name] = write_tiny(root / str(len(folders)), family, **overrides)
        return folders[name]

    return get


@pytest.fixture(scope="session", autouse=True)
def plans_travel() -> Iterator[None]:
    """Let every plan of every engine reach its worker as JSON, as if that were elsewhere."""
    plans = TypeAdapter(StepPlan)
    execute = LocalExecutor.execute

    def execute_received(self: LocalExecutor, plan: StepPlan) -> StepResult:
        received = plans.validate_json(plans.dump_json(plan))
        assert received == plan
        return execute(self, received)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalExecutor, "execute", execute_received)
        yield


@pytest.fixture(scope="session")
def build_llm(tiny_folder: Callable[..., Path]) -> Callable[..., LLM]:
    """A function that makes an engine on a tiny model, with room on the host where asked."""

    def make(
        family: str = "llama",
        *,
        model: dict[str, object] | None = None,
        host_blocks: int = 0,
        **options: object,
    ) -> LLM:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cache_size, "resolve_host_blocks", lambda *_: (host_blocks, "tested"))
            options = {"block_size": 4, "dtype": "float32", **options}
            return LLM(str(tiny_folder(family, **(model or {}))), device="cpu", **options)

    return make


@pytest.fixture
def make_llm(build_llm: Callable[..., LLM]) -> Iterator[Callable[..., LLM]]:
    """The same, and after the test nothing may be left in an engine that still lives."""
    llms: list[LLM] = []

    def make(*args: object, **options: object) -> LLM:
        llms.append(build_llm(*args, **options))
        return llms[-1]

    yield make
    for llm in llms:
        if llm.llm_engine._health.is_good:
            check_nothing_left(llm)


@pytest.fixture(scope="session")
def nothing_left() -> Callable[[LLM], None]:
    """A function that fails where an idle engine still holds something."""
    return check_nothing_left


def check_nothing_left(llm: LLM) -> None:
    """Look into every room of an engine that has nothing to do."""
    engine, scheduler = llm.llm_engine, llm.llm_engine.scheduler
    assert not engine.has_unfinished_requests()
    assert engine.cache_manager.usage == 0
    engine.cache_manager.check_integrity([])
    queues = scheduler.num_running, scheduler.num_waiting, scheduler.num_swapped
    assert queues == (0, 0, 0)
    assert engine.step() == []  # which tells the worker who is finished
    assert (scheduler._requests, scheduler._members, scheduler._finished) == (set(), [], [])
    assert engine._output_processor._moved == {}
    assert (engine._router._routes, bool(engine._mailbox)) == ({}, False)
    runner = engine.executor.runner
    assert (runner.sampler._states, runner._tables._rows) == ({}, {})
    cache = engine.executor.runner.cache
    assert all(pages.isfinite().all() for layer in cache.layers for pages in layer)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute on one thread: for tiny models, others cost more than they do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def save_tokenizer() -> Callable[..., None]:
    """A function that writes a tokenizer into a folder, with the special tokens given."""

    def save(folder: Path, **special: str | None) -> None:
        tiny_tokenizer(**special).save_pretrained(folder)

    return save


CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'system' and 'a' not in m.content %}{{ raise_exception('no system') }}"
    "{% endif %}{{ m.content }} . {% endfor %}"
)
"""Each turn's words and a full stop; system messages without an `a` are refused."""


@pytest.fixture
def chat_model(save_tiny: SaveTiny) -> Path:
    """A tiny model that knows the ten words alone, with a chat template and room for 256 tokens."""
    folder = save_tiny(vocab_size=10, max_position_embeddings=256, bos_token_id=9, eos_token_id=9)
    model = AutoModelForCausalLM.from_pretrained(folder)
    head = model.lm_head.weight.data
    head[9] = (head[0] + head[1]) / 2  # `<eos>` is never the most likely
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def clean_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No variable of ours and an empty working directory; the package's logger is given back."""
    for name in [name for name in os.environ if name.upper().startswith("FOLOVLLM_")]:
        monkeypatch.delenv(name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    logger = logging.getLogger("folovllm")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of a tiny Llama with a byte-level vocabulary, as llama.cpp writes them."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path)
    return path


def write_tiny_gguf(path: Path) -> None:
    """Write the header, the tokenizer and random weights of a two-layer Llama."""
    from gguf import GGUFWriter  # not there on every machine that the other models serve

    tokens = ["<|endoftext|>", *sorted(set(ByteLevel.alphabet())), "ab", "cd"]
    width, hidden, vocabulary = 32, 48, len(tokens)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(2)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (vocabulary - 1))
    writer.add_token_merges(["a b", "c d"])  # two: transformers 5.17 takes a list of one for text
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    random = np.random.default_rng(0)
    shapes = {"token_embd": (vocabulary, width), "output_norm": (width,)}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.attn_norm": (width,),
            f"blk.{layer}.attn_q": (width, width),
            f"blk.{layer}.attn_k": (width // 2, width),
            f"blk.{layer}.attn_v": (width // 2, width),
            f"blk.{layer}.attn_output": (width, width),
            f"blk.{layer}.ffn_norm": (width,),
            f"blk.{layer}.ffn_gate": (hidden, width),
            f"blk.{layer}.ffn_up": (hidden, width),
            f"blk.{layer}.ffn_down": (width, hidden),
        }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Each architecture in turn."""
    return str(request.param)


@pytest.fixture(params=sorted({**FAMILIES, **MORE_FAMILIES}))
def served_family(request: pytest.FixtureRequest) -> str:
    """Each architecture that the engine is tried with in turn."""
    return str(request.param)
