"""Captured graphs, with a capture that is played: a replay does the work again."""

import logging
import random
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from folovllm.attention.backend import LayerSpec
from folovllm.attention.paged import PagedBackend
from folovllm.worker.cuda_graphs import DecodeGraphs, GraphMaker, bucket_sizes
from tests.unit.attention.reference import make_batch

CPU = torch.device("cpu")
BLOCK, MAX_LEN = 4, 30
SIZES = (1, 2, 4, 8, 11)


def test_sizes_grow_with_the_batch():
    assert bucket_sizes(256) == (1, 2, 4, *range(8, 257, 8))
    assert bucket_sizes(300) == (*bucket_sizes(256), 272, 288, 300)
    assert bucket_sizes(512)[-2:] == (496, 512)


@given(st.integers(1, 1000))
def test_sizes_end_with_the_largest_batch(most):
    sizes = bucket_sizes(most)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == most
    assert all(b - a <= max(16, a) for a, b in pairwise(sizes))


class Model:
    """Keeps what it is run on, and makes logits of it: token, position, length, first block."""

    device, dtype, layers = CPU, torch.float32, [LayerSpec(1, 2, 2)]

    def __init__(self):
        self.seen = []

    def forward(self, token_ids, positions, step, logit_rows):
        data = step.metadata
        table, lengths = data.block_table, data.cu_seq_lens.diff()
        self.seen.append((token_ids, positions, data, logit_rows))
        columns = (token_ids, positions, lengths, table[:, 0], data.slots)
        return torch.stack(columns, 1)[logit_rows].float()


class Played:
    """Counts what was captured and what was replayed, by the rows of the model's last run."""

    def __init__(self, model):
        self.model, self.captured, self.replayed = model, [], []

    def __call__(self, work):
        size = len(self.model.seen[-1][0])
        self.captured.append(size)

        def replay():
            self.replayed.append(size)
            work()

        return replay


@pytest.fixture
def played():
    model = Model()
    capture = Played(model)
    graphs = DecodeGraphs(model, PagedBackend(), [], SIZES, BLOCK, MAX_LEN, capture)
    model.seen.clear()
    return SimpleNamespace(model=model, capture=capture, graphs=graphs)


def decode_batch(count, seed=0):
    rng = random.Random(seed)
    parts = [(rng.randint(0, MAX_LEN - 1), 1) for _ in range(count)]
    tables = [[rng.randint(1, 99) for _ in range(context // BLOCK + 1)] for context, _ in parts]
    batch = make_batch(parts, tables, BLOCK)
    batch.token_ids[:] = [rng.randint(1, 999) for _ in range(count)]
    return batch


def test_the_largest_is_captured_first(played):
    assert played.capture.captured == sorted(SIZES, reverse=True)
    assert played.capture.replayed == []


@torch.inference_mode()
def run(played, batch):
    return played.graphs.run(batch)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 11), st.integers(0, 9)), min_size=1, max_size=8))
def test_a_graph_reads_the_batch_and_padding_that_harms_nothing(counts):
    model = Model()
    graphs = DecodeGraphs(model, PagedBackend(), [], SIZES, BLOCK, MAX_LEN, Played(model))
    for count, seed in counts:  # growing and shrinking: what stays of a larger one does not matter
        batch = decode_batch(count, seed)
        logits = run(SimpleNamespace(graphs=graphs), batch)
        firsts = batch.block_table[:, 0]
        columns = (batch.token_ids, batch.positions, batch.seq_lens, firsts, batch.slots)
        assert logits.tolist() == np.stack(columns, 1).tolist()
        token_ids, positions, data, _ = model.seen[-1]
        size = len(token_ids)
        assert size == next(size for size in SIZES if size >= count)
        width = batch.block_table.shape[1]
        assert data.block_table[:count, :width].tolist() == batch.block_table.tolist()
        assert not data.block_table[count:size, 0].any()
        for numbers in (token_ids, positions, data.slots):
            assert not numbers[count:].any()
        assert (data.cu_seq_lens.diff()[count:] == 1).all()
        assert data.cu_query_lens.tolist() == list(range(size + 1))
        assert (data.max_query_len, data.max_seq_len) == (1, MAX_LEN)
        assert data.block_table.shape == (size, 8)


def test_nothing_is_taken_anew_or_moves(played):
    places = {}
    for seed in range(40):
        logits = run(played, decode_batch(seed % 11 + 1, seed))
        token_ids, positions, data, rows = played.model.seen[-1]
        tensors = token_ids, positions, rows, data.slots, data.cu_query_lens, data.cu_seq_lens
        at = [t.data_ptr() for t in (*tensors, data.block_table, logits)]
        assert places.setdefault(len(token_ids), at) == at
        assert token_ids.dtype == positions.dtype == data.slots.dtype == torch.int64
    assert set(places) == set(SIZES)


def test_replays_once_a_step(played):
    for count in (1, 2, 3, 4, 5, 8, 9, 11):
        run(played, decode_batch(count))
    assert played.capture.replayed == [1, 2, 4, 4, 8, 8, 11, 11]


def test_what_is_no_decoding_is_left_to_others(played):
    longer = make_batch([(3, 2), (5, 1)], [[1, 2], [3, 4]], BLOCK)
    for other in (longer, decode_batch(12)):
        assert run(played, other) is None
    assert played.model.seen == []


class Memory:
    """Free memory of a device: the first graph takes 100, each of the others 7, kernels 50."""

    def __init__(self):
        self.captured = 0
        self.kernels = 0

    def new_capture(self):
        self.captured = 0

        def capture(work):
            self.captured += 1
            self.kernels = 50  # from the first run on
            return work

        return capture

    def free(self):
        return 1000 - self.kernels - (93 + 7 * self.captured if self.captured else 0)


def maker(new_capture, free):
    return GraphMaker(Model(), PagedBackend(), SIZES, BLOCK, MAX_LEN, new_capture, free)


def test_what_all_graphs_take_is_known_from_two():
    memory = Memory()
    captured = []
    made = maker(memory.new_capture, memory.free)

    def new_capture():
        capture = memory.new_capture()
        return lambda work: captured.append(len(made.model.seen[-1][0])) or capture(work)

    made.new_capture = new_capture
    taken = []
    free = made.free_memory

    def note():
        taken.append(free())
        if len(taken) % 2 == 0:
            memory.captured = 0  # what was captured is gone again
        return taken[-1]

    made.free_memory = note
    assert made.measure() == 100 + 4 * 7
    assert captured == [11, 11, 11, 8]
    assert taken == [1000, 850, 950, 850, 950, 843]


def test_what_was_captured_is_told(caplog):
    memory = Memory()
    with caplog.at_level(logging.INFO):
        graphs = maker(memory.new_capture, memory.free).make([])
    assert graphs is not None
    assert "captured decoding for 5 batch sizes up to 11 in " in caplog.text
    assert caplog.text.rstrip().endswith("0 MiB")


def test_a_capture_that_fails_is_told_with_its_cause(caplog):
    tried = []

    def capture(work):
        tried.append(1)
        try:
            raise torch.OutOfMemoryError("CUDA out of memory.\nmore lines")
        finally:
            raise RuntimeError("capture ended badly")

    made = maker(lambda: capture, lambda: 1000)
    assert made.measure() == 0
    assert made.make([]) is None
    assert len(tried) == 1
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.endswith("slower: OutOfMemoryError: CUDA out of memory.")
