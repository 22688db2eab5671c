"""The benchmark for GPUs, on a CPU and a model of no size: it must run when there is one."""

import pytest

from benchmarks.gpu import WAYS, Case, many, measure, summarize
from folovllm.bench.workloads import uniform
from folovllm.config.bench import Range
from folovllm.diagnostics.limits import DeviceLimits

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = Case(
    shape={
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "vocab_size": 96,
        "tie_word_embeddings": True,
        "max_position_embeddings": 128,
    },
    device="cpu",
    dtype="float32",
    num_requests=4,
    lengths=uniform(Range(3, 9), Range(3, 9)),
    single=(5, 6),
    generate_requests=3,
    max_model_len=64,
    options={"cpu_kvcache_space": 0.01},
    batching={"num_blocks": 4, "max_batch_tokens": 64},
    seconds=20,
)


def test_the_workload_is_nano_vllms():
    workload = many(Case())
    assert (len(workload.prompts), len(workload.output_lens)) == (256, 256)
    assert min(map(len, workload.prompts)) >= 100
    assert max(map(len, workload.prompts)) <= 1024
    assert workload.num_outputs == 133_966  # as its authors report


def test_every_way_is_measured():
    lines = []
    measured = measure(SMALL, lines.append, DeviceLimits(bandwidth=1e12, rate=1e15))
    wanted = many(SMALL)
    for way in WAYS:
        result = measured.results[way]
        assert result.many is not None, result.note
        assert result.single.tokens == 6
        count = 3 if way == "transformers generate" else 4
        assert result.many.tokens == sum(wanted.output_lens[:count])
    ours = measured.results["folovllm"]
    assert 0 < ours.many.floor < ours.many.seconds
    assert ours.note == "sdpa attention, no graphs"
    assert measured.results["transformers generate_batch"].many.floor == ours.many.floor
    assert measured.results["transformers generate"].many.floor is None
    table = summarize(SMALL, measured)
    assert [line.split("  ")[0] for line in table[4:]] == list(WAYS)
    assert set(lines) >= set(table[4:])


def test_a_way_that_fails_is_told(monkeypatch):
    def fail(*_):
        raise RuntimeError("no such thing")

    monkeypatch.setitem(WAYS, "folovllm eager", fail)
    monkeypatch.delitem(WAYS, "transformers generate_batch")
    measured = measure(SMALL, lambda line: None, DeviceLimits(1e12, 1e15))
    assert measured.results["folovllm eager"].note == "failed: RuntimeError: no such thing"
    assert measured.results["transformers generate"].many is not None
