"""The real flash-attn, where it is installed on a machine with a GPU: `pytest -m gpu tests/gpu`."""

import pytest
import torch

from folovllm import LLM, SamplingParams
from folovllm.attention.backend import AttentionNeeds, AttentionOptions
from folovllm.attention.flash import FlashBackend
from folovllm.attention.paged import PagedMetadata
from tests.integration.conftest import write_tiny
from tests.unit.attention.played_flash import Case


def refusal():
    """Why it cannot be tried here."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    return FlashBackend().refusal(AttentionNeeds(torch.device("cuda"), torch.bfloat16, (), None))


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(refusal() is not None, reason=str(refusal()))]

BATCHES = {
    "decoding": [(0, 1), (9, 1), (255, 1), (256, 1), (3000, 1)],
    "many": [(37 * i, 1) for i in range(64)],
    "prompts": [(0, 5), (0, 256), (0, 700)],
    "chunks": [(300, 200), (255, 2), (256, 256), (1, 1000)],
    "mixed": [(700, 1), (0, 300), (5, 1), (4000, 17)],
}
TOLERANCES = {torch.bfloat16: 2e-2, torch.float16: 3e-3}


def check(case, options, dtype):
    output, cache = case.run(FlashBackend(), options)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(
        output.double(), case.expected(options), rtol=tolerance, atol=tolerance
    )
    for pages, written in zip(cache, case.tensors[1:], strict=True):
        assert torch.equal(pages.flatten(0, 1)[case.slots], written[0].transpose(0, 1))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("size", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("batch", BATCHES)
def test_head_sizes(batch, size, dtype):
    case = Case(BATCHES[batch], heads=8, kv_heads=2, size=size, dtype=dtype, device="cuda")
    check(case, AttentionOptions(size**-0.5), dtype)


@pytest.mark.parametrize("heads", [(4, 4), (8, 1), (14, 2), (32, 8)], ids=str)
@pytest.mark.parametrize("batch", BATCHES)
def test_groups_of_heads(batch, heads):
    case = Case(BATCHES[batch], heads=heads[0], kv_heads=heads[1], size=128, device="cuda")
    check(case, AttentionOptions(128**-0.5), torch.bfloat16)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("window", [None, 1, 128, 257, 10**6])
@pytest.mark.parametrize("batch", BATCHES)
def test_windows_and_soft_caps(batch, window, softcap):
    case = Case(BATCHES[batch], size=64, page=512, device="cuda")
    check(case, AttentionOptions(0.125, window=window, softcap=softcap), torch.bfloat16)


@pytest.mark.parametrize("window", [None, 100])
def test_a_captured_step_serves_other_lengths(window):
    """Four rows of five are used, of lengths that it was not captured with."""
    device = torch.device("cuda")
    case = Case([(40, 1), (300, 1), (700, 1), (0, 1)], heads=8, size=64, device=device)
    options = AttentionOptions(0.125, window=window)
    metadata = PagedMetadata(
        torch.zeros(5, dtype=torch.int64, device=device),
        torch.arange(6, dtype=torch.int32, device=device),
        torch.arange(6, dtype=torch.int32, device=device),
        torch.zeros(5, 16, dtype=torch.int32, device=device),
        max_query_len=1,
        max_seq_len=16 * 256,
    )
    static = [torch.zeros(1, t.shape[1], 5, 64, dtype=t.dtype, device=device) for t in case.tensors]

    def attend():
        return FlashBackend().attend(metadata, case.cache, *static, options)

    attend()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = attend()
    metadata.slots[:4] = case.slots
    ends = torch.tensor([*case.batch.seq_lens, 1]).cumsum(0)
    metadata.cu_seq_lens[1:] = ends.to(device, torch.int32)
    for row, table in zip(metadata.block_table, case.tables, strict=False):
        row[: len(table)] = torch.tensor(table, device=device)
    for mine, given in zip(static, case.tensors, strict=True):
        mine[:, :, :4] = given
    graph.replay()
    expected = case.expected(options)
    torch.testing.assert_close(output[:, :4].double(), expected, rtol=2e-2, atol=2e-2)
    assert output.isfinite().all()


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_the_engine_gives_what_it_gives_by_torch(tmp_path, family):
    """In bfloat16 a tie may fall either way: the probabilities of the same text are compared."""
    folder = write_tiny(
        tmp_path / "model", family, head_dim=64, hidden_size=256, max_position_embeddings=1024
    )
    prompts = [[5 + i % 80 for i in range(length)] for length in (3, 300, 700)]
    params = SamplingParams(temperature=0, max_tokens=16, prompt_logprobs=0, ignore_eos=True)

    def run(backend):
        llm = LLM(str(folder), dtype="bfloat16", device="cuda", attention_backend=backend)
        assert llm.llm_engine.setup.attention_backend == (backend or "flash")
        outputs = llm.generate(prompts, params, use_tqdm=False)
        assert all(out.error is None for out in outputs)
        return [
            next(iter(entries.values())).logprob
            for out in outputs
            for entries in out.prompt_logprobs
            if entries
        ]

    torch.testing.assert_close(
        torch.tensor(run(None)), torch.tensor(run("sdpa")), rtol=0.1, atol=0.2
    )
