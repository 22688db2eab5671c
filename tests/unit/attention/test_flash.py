"""The backend over flash-attn, with a flash-attn that is played."""

import re
import sys
from importlib.machinery import PathFinder

import pytest
import torch
from hypothesis import given, settings, strategies as st

from folovllm.attention import flash
from folovllm.attention.backend import (
    AttentionNeeds,
    AttentionOptions,
    LayerAttention,
    LayerSpec,
)
from folovllm.attention.flash import FlashBackend
from folovllm.attention.paged import PagedMetadata
from tests.unit.attention.played_flash import Case, make_module

CUDA = torch.device("cuda")
PAGE = 256


@pytest.fixture(scope="module", autouse=True)
def played():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "flash_attn", make_module())
        yield


@pytest.fixture
def device(monkeypatch):
    """A function that says what the GPU is."""

    def set_device(name="NVIDIA H200", capability=(9, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    set_device()
    return set_device


def needs(*specs, device=CUDA, dtype=torch.bfloat16, block_size=None, sinks=None):
    options = AttentionOptions(0.1, sinks=sinks)
    layers = [LayerAttention(LayerSpec(2, *sizes), 4, options) for sizes in specs or [(64, 64)]]
    return AttentionNeeds(device, dtype, tuple(layers), block_size)


@st.composite
def cases(draw):
    page = draw(st.sampled_from([PAGE, 2 * PAGE]))
    contexts = st.sampled_from([0, 1, 7, page - 1, page, page + 3])
    parts = draw(st.lists(st.tuples(contexts, st.integers(1, 9)), min_size=1, max_size=4))
    if draw(st.booleans()):  # decoding alone
        parts = [(context, 1) for context, _ in parts]
    kv_heads = draw(st.sampled_from([1, 2]))
    case = Case(
        parts,
        heads=kv_heads * draw(st.sampled_from([1, 3])),
        kv_heads=kv_heads,
        size=draw(st.sampled_from([8, 16])),
        page=page,
        seed=draw(st.integers(0, 99)),
    )
    options = AttentionOptions(
        scale=draw(st.sampled_from([0.25, 0.5])),
        window=draw(st.none() | st.sampled_from([1, 5, page, 10**6])),
        softcap=draw(st.none() | st.just(2.0)),
    )
    return case, options


@settings(max_examples=60, deadline=None)
@given(cases())
def test_attends_as_torch_does(drawn):
    case, options = drawn
    output, cache = case.run(FlashBackend(), options)
    torch.testing.assert_close(output.double(), case.expected(options), rtol=2e-2, atol=2e-2)
    for pages, written in zip(cache, case.tensors[1:], strict=True):
        slots = case.slots
        assert torch.equal(pages.flatten(0, 1)[slots], written[0].transpose(0, 1))
        pages.flatten(0, 1)[slots] = torch.nan  # nothing else was touched


@pytest.mark.parametrize("window", [None, 3])
def test_rows_that_pad_a_captured_graph(window):
    """Static tensors, larger than the batch: one token of block 0 each, at the same slot."""
    case = Case([(5, 1), (PAGE + 2, 1)])
    options = AttentionOptions(0.25, window=window)
    expected, _ = case.run(FlashBackend(), options)
    case.tensors = [torch.nn.functional.pad(part, (0, 0, 0, 2)) for part in case.tensors]
    lengths = torch.tensor([0, 6, PAGE + 3, 1, 1])
    table = torch.zeros(4, 5, dtype=torch.int32)
    for row, blocks in zip(table, case.tables, strict=False):
        row[: len(blocks)] = torch.tensor(blocks)
    metadata = PagedMetadata(
        torch.cat([case.slots, torch.tensor([0, 0])]),
        torch.arange(5, dtype=torch.int32),
        lengths.cumsum(0).to(torch.int32),
        table,
        max_query_len=1,
        max_seq_len=5 * PAGE,
    )
    output, cache = case.run(FlashBackend(), options, metadata)
    assert torch.equal(output[:, :2], expected)
    assert output.isfinite().all()
    assert cache.keys[0, 0].isfinite().all()
    assert cache.keys[0, 1:].isnan().all()


def test_a_window_that_hides_nothing_is_none(monkeypatch):
    """With any window the kernels do not put the heads of a group together."""
    seen = []
    function = sys.modules["flash_attn"].flash_attn_varlen_func

    def note(*tensors, **options):
        seen.append(options["window_size"])
        return function(*tensors, **options)

    monkeypatch.setattr(sys.modules["flash_attn"], "flash_attn_varlen_func", note)
    case = Case([(9, 1), (4, 1)])
    for window in (None, 11, 10, 9, 1):
        case.run(FlashBackend(), AttentionOptions(0.25, window=window))
    assert seen == [(-1, -1), (-1, -1), (-1, -1), (8, 0), (0, 0)]


def test_serves(device):
    assert FlashBackend().refusal(needs((64, 64), (128, 128), (256, 256))) is None
    assert FlashBackend().refusal(needs(dtype=torch.float16, block_size=512)) is None
    device("NVIDIA A100", (8, 0))
    assert FlashBackend().refusal(needs()) is None


REFUSED = {
    "cpu": (needs(device=torch.device("cpu")), "needs a CUDA device"),
    "dtype": (needs(dtype=torch.float32), "float16 and bfloat16, not in float32.*DTYPE=bfloat16"),
    "large head": (needs((64, 64), (288, 288)), r"multiples of 8 up to 256, not 288$"),
    "odd head": (needs((20, 20)), r"multiples of 8 up to 256, not 20$"),
    "two sizes": (needs((192, 128)), "values of one size, not of 192 and 128"),
    "sinks": (needs(sinks=torch.zeros(4)), "no attention sinks"),
    "blocks": (needs(block_size=16), "256 tokens, not of 16.*FOLOVLLM_BLOCK_SIZE=256 would do"),
    "several": (needs((20, 20), block_size=16), r"not 20; it reads blocks .* not of 16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(device, case):
    asked, reason = REFUSED[case]
    assert re.search(reason, FlashBackend().refusal(asked))


def test_refuses_an_old_gpu(device):
    device("Tesla T4", (7, 5))
    refusal = FlashBackend().refusal(needs())
    assert refusal == (
        "needs a GPU of compute capability 8.0 or later (Ampere), and Tesla T4 has 7.5"
    )


class TestPackage:
    """What is found under the name of flash_attn."""

    @pytest.fixture(autouse=True)
    def _device(self, device):
        pass

    def test_none(self, monkeypatch):
        monkeypatch.delitem(sys.modules, "flash_attn")
        monkeypatch.setattr(PathFinder, "find_spec", lambda *_: None)
        assert "not installed (`nox -s setup -- --with flash-attn`)" in FlashBackend().refusal(
            needs()
        )

    def test_flash_attn_4_alone(self, monkeypatch, tmp_path):
        (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
        monkeypatch.delitem(sys.modules, "flash_attn")
        monkeypatch.syspath_prepend(tmp_path)
        assert "is not installed" in FlashBackend().refusal(needs())

    def test_built_for_another_torch(self, monkeypatch, tmp_path):
        (tmp_path / "flash_attn.py").write_text(
            "raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c104\\nand so on')"
        )
        monkeypatch.delitem(sys.modules, "flash_attn")
        monkeypatch.syspath_prepend(tmp_path)
        refusal = FlashBackend().refusal(needs())
        assert refusal.startswith("cannot be imported")
        assert refusal.endswith("perhaps: flash_attn_2_cuda.so: undefined symbol: _ZN3c104")

    def test_too_old(self, monkeypatch):
        def of_2_5(q, k, v, cu_seqlens_q, cu_seqlens_k, window_size=(-1, -1), block_table=None):
            pass

        monkeypatch.setitem(sys.modules, "flash_attn", make_module(flash_attn_varlen_func=of_2_5))
        refusal = FlashBackend().refusal(needs())
        assert refusal == "is too old here, it knows no softcap (flash-attn 2.6 or later would do)"

    def test_is_not_looked_for_in_vain(self, monkeypatch):
        monkeypatch.setattr(flash, "find_spec", lambda name: pytest.fail("looked for it"))
        assert FlashBackend().refusal(needs(dtype=torch.float32))
