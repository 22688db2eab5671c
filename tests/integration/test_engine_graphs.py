"""The same tokens with and without captured graphs, which are played: a replay runs again.

What a graph reads stays where it is, and is all that a replay sees: so everything but the capture
itself is as on a GPU.
"""

import random
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from folovllm import SamplingParams
from folovllm.attention.backend import write_to_cache
from folovllm.attention.paged import PagedBackend
from folovllm.engine import assemble, resolve
from folovllm.models.hf_adapter import LayerRecorder, PagedModel
from folovllm.worker.cuda_graphs import GraphMaker, bucket_sizes

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = ("llama", "gemma2", "gpt_oss", "mixtral")
MOST = 19  # sizes 1, 2, 4, 8, 16 and 19
PROMPTS = [[random.Random(i).randrange(3, 96) for _ in range(2 + 5 * i % 23)] for i in range(MOST)]


class ReferenceBackend(PagedBackend):
    """Attends in float64 by nothing but the tensors of `PagedMetadata`, as a kernel would."""

    name, block_size = "reference", 4

    def refusal(self, needs):
        return None

    def attend(self, metadata, cache, query, key, value, options):
        write_to_cache(cache, metadata.slots, key, value)
        places = torch.arange(query.shape[2])
        seq = torch.searchsorted(metadata.cu_query_lens, places, right=True) - 1
        left = metadata.cu_query_lens[seq + 1] - places  # itself and the tokens after it
        lengths = metadata.cu_seq_lens.diff()[seq]
        pages = (p[metadata.block_table].flatten(1, 2)[seq].double() for p in cache)
        group = query.shape[1] // key.shape[1]
        keys, values = (p.repeat_interleave(group, 2) for p in pages)
        scores = torch.einsum("hts,tchs->htc", query[0].double(), keys) * options.scale
        if options.softcap is not None:
            scores = options.softcap * torch.tanh(scores / options.softcap)
        at, own = torch.arange(keys.shape[1]), (lengths - left)[:, None]
        seen = at <= own
        if options.window is not None:
            seen &= at > own - options.window
        scores = scores.masked_fill(~seen, -torch.inf)
        if options.sinks is not None:
            sinks = options.sinks.double()[:, None, None].expand(-1, len(places), 1)
            scores = torch.cat([scores, sinks], -1)
        weights = scores.softmax(-1)[..., : keys.shape[1]]
        return torch.einsum("htc,tchs->ths", weights, values)[None].to(query.dtype)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


def greedy(max_tokens=8, **options):
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **options)


def tokens_of(llm, prompts, params):
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert all(out.error is None and out.finished for out in outputs)
    return [[completion.token_ids for completion in out.outputs] for out in outputs]


@pytest.fixture(scope="module")
def expected(build_llm, family):
    """What an engine without graphs generates request by request."""
    llm = build_llm(family, enable_prefix_caching=False)
    return [tokens_of(llm, prompt, greedy(20))[0][0] for prompt in PROMPTS]


@pytest.fixture
def make_graphs_llm(make_llm, family, monkeypatch):
    """A function that makes an engine with played graphs; `sizes` notes what is replayed."""

    def make(**options):
        sizes = []

        def play(model, attention, buckets, block_size, max_model_len):
            def capture(work):
                size = len(forwards[-1])

                def replay():
                    sizes.append(size)
                    work()

                return replay

            forwards, forward = [], model.forward

            def note(token_ids, *others):
                forwards.append(token_ids)
                return forward(token_ids, *others)

            model.forward = note
            return GraphMaker(
                model, attention, buckets, block_size, max_model_len, lambda: capture, lambda: 0
            )

        monkeypatch.setattr(assemble, "find_attention", lambda *_: (ReferenceBackend(), "tested"))
        monkeypatch.setattr(
            resolve, "resolve_graph_sizes", lambda *_: (bucket_sizes(MOST), "tested")
        )
        monkeypatch.setattr(resolve, "graph_maker", play)
        llm = make_llm(family, **{"max_num_seqs": MOST, **options})
        return SimpleNamespace(llm=llm, sizes=sizes)

    return make


def test_at_every_edge_of_a_batch_size(make_graphs_llm, expected):
    made = make_graphs_llm(enable_prefix_caching=False)
    for count in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 18, 19):
        made.sizes.clear()
        got = tokens_of(made.llm, PROMPTS[:count], greedy(4))
        assert got == [[tokens[:4]] for tokens in expected[:count]]
        assert made.sizes == [next(size for size in (1, 2, 4, 8, 16, 19) if size >= count)] * 3


def test_batches_that_grow_and_shrink(make_graphs_llm, expected):
    made = make_graphs_llm(max_num_batched_tokens=24)
    lengths = [1 + 7 * i % 20 for i in range(MOST)]
    got = tokens_of(made.llm, PROMPTS, [greedy(length) for length in lengths])
    assert got == [[t[:length]] for t, length in zip(expected, lengths, strict=True)]
    assert {1, 4, 8, 16} <= set(made.sizes)
    # And again from the prefix cache, in another order.
    order = list(range(MOST))[::-1]
    got = tokens_of(made.llm, [PROMPTS[i] for i in order], greedy(6))
    assert got == [[expected[i][:6]] for i in order]
    assert made.llm.stats()["prefix_hits"] > 0


@pytest.mark.parametrize("host_blocks", [0, 10])
def test_a_cache_that_is_too_small_for_all(make_graphs_llm, expected, host_blocks):
    made = make_graphs_llm(
        num_gpu_blocks_override=15, max_num_batched_tokens=19, host_blocks=host_blocks
    )
    assert tokens_of(made.llm, PROMPTS, greedy(20)) == [[tokens] for tokens in expected]
    assert made.llm.stats()["preemptions"] > 0
    assert made.sizes


def test_forked(make_graphs_llm, expected):
    made = make_graphs_llm()
    prompts = PROMPTS[:4]
    assert tokens_of(made.llm, prompts, greedy(n=4)) == [[t[:8]] * 4 for t in expected[:4]]
    assert set(made.sizes) == {16}


def test_sampled_with_a_seed(make_graphs_llm, make_llm, family):
    params = SamplingParams(temperature=1.5, seed=3, max_tokens=9, ignore_eos=True, logprobs=2, n=3)
    plain = tokens_of(make_llm(family), PROMPTS[:5], params)
    made = make_graphs_llm()
    assert tokens_of(made.llm, PROMPTS[:5], params) == plain
    assert set(made.sizes) == {16}


def test_prompt_logprobs_are_computed_without(make_graphs_llm):
    made = make_graphs_llm(max_num_batched_tokens=1)  # every step has one token
    params = greedy(3, prompt_logprobs=0)
    [out] = made.llm.generate(PROMPTS[2], params, use_tqdm=False)
    assert len(out.prompt_logprobs) == len(PROMPTS[2])
    assert made.sizes == [1, 1, 1]  # the prompt's last token is like any other


def test_padding_writes_to_the_null_block_alone(make_graphs_llm):
    made = make_graphs_llm(enable_prefix_caching=False)
    runner, owned = made.llm.llm_engine.executor.runner, {0}
    execute = runner.execute

    def note(plan):
        owned.update(*(entry.block_ids for entry in plan.scheduled))
        return execute(plan)

    runner.execute = note
    pages = [p for layer in runner.cache.layers for p in layer]
    for page in pages:
        page.fill_(7)
    tokens_of(made.llm, PROMPTS[:5], greedy(12))
    assert set(made.sizes) == {8}
    for page in pages:
        changed = (page != 7).flatten(1).any(1).nonzero()[:, 0].tolist()
        assert 0 in changed
        assert set(changed) <= owned


class Watch(TorchDispatchMode):
    """Notes operations that cannot be captured: they wait for the device, or copy from the host."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put_") else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        if by_mask or name in ("_local_scalar_dense", "nonzero", "equal", "lift_fresh"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


CANNOT_BE_CAPTURED = {
    "gpt2",  # each layer takes a constant from the host
    "longcat_flash",  # asks the device which experts were chosen
}


def test_models_that_can_be_captured(tiny_folder, served_family):
    model = PagedModel(AutoModelForCausalLM.from_pretrained(tiny_folder(served_family)))
    numbers = torch.tensor([3, 7, 5])
    with torch.inference_mode(), Watch() as watch:
        model.forward(numbers, numbers, LayerRecorder(), torch.arange(3))
    assert watch.found == [] or served_family in CANNOT_BE_CAPTURED


def test_what_cannot_be_captured_is_noticed():
    with Watch() as watch:
        three = torch.ones(3)
        assert three.sum() == 3
        three[three > 0].nonzero()
        torch.tensor(3.0)
    assert watch.found == ["_local_scalar_dense", "index", "nonzero", "lift_fresh"]
