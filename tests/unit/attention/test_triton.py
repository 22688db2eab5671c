import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st

from folovllm.attention.backend import (
    AttentionNeeds,
    AttentionOptions,
    LayerAttention,
    LayerSpec,
)
from folovllm.attention.choice import find_backend
from folovllm.attention.triton import TritonBackend
from folovllm.errors import ConfigError
from folovllm.kernels.triton_tiles import (
    Device,
    choose_launch,
    choose_splits,
    choose_tiles,
    count_row_tiles,
    describe,
    most_rows,
    padded,
)
from tests.unit.attention.reference import make_batch

ROOT = Path(__file__).parents[3]
CUDA = torch.device("cuda", 0)
H200 = Device(132, 228 << 10)

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def make_needs(device=CUDA, dtype=torch.bfloat16, num_heads=16, kv_heads=8, sizes=(128, 128)):
    layer = LayerAttention(LayerSpec(kv_heads, *sizes), num_heads, AttentionOptions(0.1))
    return AttentionNeeds(device, dtype, (layer,), None)


@pytest.fixture
def gpu(monkeypatch):
    """Plays a GPU of a compute capability."""
    describe.cache_clear()

    def play(major, minor=0):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a played one")
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: "there")

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    yield play
    describe.cache_clear()


@needs_triton
def test_every_kernel_by_the_interpreter():
    """In a process of its own: see the files that it runs."""
    files = [
        "tests/unit/attention/triton_interpreted.py",
        "tests/integration/triton_interpreted_engine.py",
    ]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", *files],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert "skipped" not in result.stdout


def test_importing_the_package_imports_no_triton():
    program = "import sys, folovllm.attention.choice; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [8, 64, 80, 96, 128, 192, 256])
def test_serves_a_gpu(gpu, dtype, size):
    gpu(8, 0)
    assert TritonBackend().refusal(make_needs(dtype=dtype, sizes=(size, size))) is None
    needs = make_needs(dtype=dtype, sizes=(size, size))
    assert find_backend(needs, "triton")[0].name == "triton"


@pytest.mark.parametrize(
    ("needs", "capability", "message"),
    [
        (make_needs(torch.device("cpu")), (9, 0), "needs a CUDA device"),
        (
            make_needs(dtype=torch.float16),
            (7, 5),
            r"8.0 or later \(Ampere\), and a played one has 7.5",
        ),
        (make_needs(dtype=torch.float64), (9, 0), "and float32, not in float64 .*would do"),
        (make_needs(sizes=(128, 512)), (9, 0), "head sizes up to 256, not 512"),
        (make_needs(num_heads=1040), (9, 0), "up to 128 query heads .*, not 130"),
    ],
)
def test_refuses_with_a_reason(gpu, needs, capability, message):
    gpu(*capability)
    with pytest.raises(ConfigError, match=f"attention_backend: triton .*{message}.*sdpa can"):
        find_backend(needs, "triton")


def test_serves_the_largest_group(gpu):
    gpu(9)
    assert TritonBackend().refusal(make_needs(num_heads=1024)) is None


def test_refuses_where_triton_is_not_installed(gpu, monkeypatch):
    gpu(9)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "is not installed" in TritonBackend().refusal(make_needs())


def test_the_interpreter_serves_a_cpu_but_for_bfloat16(gpu, monkeypatch):
    gpu(9)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    cpu = torch.device("cpu")
    assert TritonBackend().refusal(make_needs(cpu, torch.float16)) is None
    assert "bits of bfloat16" in TritonBackend().refusal(make_needs(cpu, torch.bfloat16))


@given(
    st.sampled_from([16, 32, 64, 128, 256]),
    st.sampled_from([2, 4]),
    st.integers(1, 130),
    st.booleans(),
    st.sampled_from([100 << 10, 164 << 10, 228 << 10]),
)
def test_tiles_hold_a_group(width, itemsize, group, decoding, shared_memory):
    tiles = choose_tiles(width, itemsize, group, decoding, shared_memory)
    assert tiles.rows >= group
    for number in (tiles.rows, tiles.columns):
        assert number >= 16
        assert number & (number - 1) == 0


@given(st.lists(st.integers(1, 90), min_size=1, max_size=9), st.integers(1, 20))
def test_there_are_tiles_for_all_tokens(query_lens, tokens_per_tile):
    """Of every sequence, in the order in which the kernel finds them."""
    starts = [sum(query_lens[:i]) // tokens_per_tile + i for i in range(len(query_lens) + 1)]
    for start, following, count in zip(starts, starts[1:], query_lens, strict=False):
        assert start + -(-count // tokens_per_tile) <= following
    assert starts[-1] <= count_row_tiles(
        sum(query_lens), len(query_lens), tokens_per_tile, decoding=False
    )


@pytest.mark.parametrize(
    ("programs", "wanted", "max_seq_len", "splits"),
    [
        (8, 528, 100_000, 64),  # one sequence: as many as can be combined
        (8, 528, 1024, 16),  # not below a tile
        (8, 528, 1000, 16),
        (64, 528, 100_000, 8),
        (200, 528, 100_000, 2),
        (265, 528, 100_000, 1),  # busy already
        (4096, 528, 100_000, 1),
        (8, 528, 1, 1),
    ],
)
def test_splits(programs, wanted, max_seq_len, splits):
    assert choose_splits(programs, wanted, max_seq_len, 64) == splits


def test_a_launch_depends_on_nothing_but_the_hosts_numbers():
    """A captured one is replayed for other lengths."""
    query = torch.zeros(1, 4, 3, 64)
    launches = set()
    for lengths in ([1, 2, 500], [500, 499, 1]):
        parts = [(length - 1, 1) for length in lengths]
        batch = make_batch(parts, [list(range(1, 33))] * 3, 16)
        metadata = TritonBackend().build(batch, query.device)
        launches.add(choose_launch(metadata, query, 2, 64))
    assert len(launches) == 1
    assert launches.pop().row_tiles == 3


def test_a_gpu_is_described(gpu, monkeypatch):
    class Properties:
        multi_processor_count = 132
        shared_memory_per_multiprocessor = 228 << 10

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    assert describe(CUDA) == H200


def compile_attend(triton_attention, capability, dtype, size, group, decoding, tiles):
    """Compile for a GPU that need not be there."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile as compile_kernel

    kernel = triton_attention.attend_kernel
    constants = {"group": group, "kv_heads": 8, "key_size": size, "value_size": size}
    constants |= {"block_size": 16, "window": None, "softcap": None, "decoding": decoding}
    constants |= {"key_width": padded(size), "value_width": padded(size)}
    constants |= {"rows": tiles.rows, "columns": tiles.columns, "sinks": None}
    if not decoding:
        constants["log_sums"] = None
    types = dict.fromkeys(["query", "key_pages", "value_pages"], f"*{dtype}")
    types |= {"output": "*fp32" if decoding else f"*{dtype}", "scale": "fp32"}
    types |= {"log_sums": "*fp32", "block_table": "*i32"}
    types |= dict.fromkeys(["cu_query_lens", "cu_seq_lens"], "*i32")
    signature, values, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[(i,)] = "constexpr", constants[name]
        else:
            signature[name] = types.get(name, "i32")
        if signature[name].startswith("*") or name.endswith("stride"):
            attributes[(i,)] = [["tt.divisibility", 16]]
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    source = ASTSource(kernel, signature, values, attributes)
    return compile_kernel(source, target=GPUTarget("cuda", capability, 32), options=options)


@needs_triton
@pytest.mark.parametrize("decoding", [False, True], ids=["prompts", "decoding"])
@pytest.mark.parametrize(
    ("capability", "dtype", "size"),
    [(86, "bf16", 128), (86, "fp16", 256), (86, "fp32", 256), (90, "bf16", 256)],
)
def test_compiles_within_a_gpus_shared_memory(
    monkeypatch, tmp_path, capability, dtype, size, decoding
):
    """Of the smallest GPU of that kind; the GPU itself is not needed for that."""
    import triton

    from folovllm.kernels import triton_attention

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    memory = {86: 100 << 10, 90: 228 << 10}[capability]
    itemsize = 4 if dtype == "fp32" else 2
    for group in (2, most_rows(size, itemsize)):
        tiles = choose_tiles(padded(size), itemsize, group, decoding, memory)
        compiled = compile_attend(triton_attention, capability, dtype, size, group, decoding, tiles)
        assert compiled.metadata.shared <= memory - 1024
