"""How often a step goes between host and device, on a device that is played on the CPU."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from folovllm.attention.paged import PagedBackend
from folovllm.core.plan import StepPlan
from folovllm.sampling.sampler import Sampler
from folovllm.sampling_params import SamplingSpec
from folovllm.worker.cuda_graphs import DecodeGraphs
from folovllm.worker.model_runner import ModelRunner
from tests.unit.worker.plans import new, part, plan

DEVICE = torch.device("meta")  # the one that torch always has beside the CPU
BLOCK, VOCAB = 4, 128


class Remote(torch.Tensor):
    """A tensor that says that it is on the device; its numbers are in `held`, on the CPU."""

    is_cuda = True

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=DEVICE
        )

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of the played device")

    def tolist(self):
        return self.cpu().tolist()


class PlayedDevice(TorchDispatchMode):
    """Computes on the CPU and counts the ways: `sent` to the device, `fetched`, and `waits`."""

    def __init__(self):
        super().__init__()
        self.clear()

    def clear(self):
        self.sent = self.fetched = self.waits = 0

    @property
    def counts(self):
        return self.sent, self.fetched, self.waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name, target = func.overloadpacket.__name__, kwargs.get("device")
        given = []
        tree_map(given.append, (args, kwargs))
        there = any(isinstance(x, Remote) for x in given)
        leaves = there and target is not None and target.type == "cpu"
        arrives = target is not None and target.type == DEVICE.type
        mixed = [x for x in given if type(x) is torch.Tensor and x.dim()] if there else []
        assert not mixed or name == "copy_", f"{name} of tensors here and there"
        self.waits += name in ("_local_scalar_dense", "nonzero")
        self.fetched += leaves
        self.sent += name in ("to", "_to_copy") and arrives and not there
        self.sent += name == "copy_" and there and not isinstance(args[1], Remote)
        kwargs.pop("pin_memory", None)
        if arrives:
            kwargs["device"] = torch.device("cpu")
        held = tree_map(lambda x: x.held if isinstance(x, Remote) else x, (args, kwargs))
        result = func(*held[0], **held[1])
        if name.endswith("_") and not name.startswith("_") and isinstance(args[0], Remote):
            return args[0]
        if not (there or arrives) or leaves:
            return result
        return tree_map(lambda x: Remote(x) if isinstance(x, torch.Tensor) else x, result)


@pytest.fixture
def device():
    return PlayedDevice()


class Model:
    device, dtype, layers = DEVICE, torch.float32, []

    def forward(self, token_ids, positions, step, logit_rows):
        columns = torch.arange(VOCAB, device=DEVICE)
        return ((token_ids + positions)[logit_rows, None] * 7 + columns).remainder(101).float()


def make_runner(graphs):
    sampler = Sampler(VOCAB, DEVICE, seed=0)
    moves = dict.fromkeys(("swap_out", "swap_in", "copy", "clear"), len)
    cache = SimpleNamespace(layers=[], **moves)
    model, backend, made = Model(), PagedBackend(), None
    if graphs:
        made = DecodeGraphs(model, backend, [], (1, 2, 4, 8), BLOCK, 64, lambda work: work)
    return ModelRunner(model, cache, backend, sampler, BLOCK, made)


def plan_of(prompt_len, count, **spec):
    """A step of as many sequences; the whole prompt of each, or one token after it."""
    entries = []
    for i in range(count):
        start, token_ids = (0, [1 + i] * prompt_len) if prompt_len else (9, [5])
        entries.append(part(f"{i}-0", start, token_ids, [3 * i + 1, 2, 3]))
    return plan(*entries, meet=[new(entry.seq_id, SamplingSpec(**spec)) for entry in entries])


GREEDY = {"temperature": 0}
SAMPLED = {"temperature": 0.7, "top_p": 0.9, "seed": 1}


@pytest.mark.parametrize(
    ("graphs", "prompt_len", "params", "expected"),
    [
        # One copy for the batch, one for the attention's tables, one back.
        (False, 9, GREEDY, (2, 1, 0)),
        (False, 0, GREEDY, (2, 1, 0)),
        # What a graph reads arrives together.
        (True, 0, GREEDY, (1, 1, 0)),
        (True, 0, {**GREEDY, "logprobs": 3}, (1, 1, 0)),
        (True, 9, GREEDY, (2, 1, 0)),
        # The random numbers and parameters of those that draw.
        (True, 0, SAMPLED, (2, 1, 0)),
    ],
)
def test_the_ways_of_a_step(device, graphs, prompt_len, params, expected):
    with device:
        runner = make_runner(graphs)
        device.clear()
        result = runner.execute(plan_of(prompt_len, 3, **params))
    assert device.counts == expected
    plain = make_plain(prompt_len, params)
    assert result.token_ids == plain


def make_plain(prompt_len, params):
    """The same step on the CPU, without anything played."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "device", torch.device("cpu"))
        patch.setitem(Model.forward.__globals__, "DEVICE", torch.device("cpu"))
        return make_runner(False).execute(plan_of(prompt_len, 3, **params)).token_ids


def test_forks_take_one_more(device):
    made = plan_of(9, 2, **GREEDY)
    first, second = made.scheduled
    forked = StepPlan(
        (first._replace(samples=("0-0", "0-1")), second),
        (*made.new, new("0-1", SamplingSpec(**GREEDY), index=1)),
    )
    with device:
        runner = make_runner(False)
        device.clear()
        result = runner.execute(forked)
    assert device.counts == (3, 1, 0)
    assert result.token_ids[0] == result.token_ids[1]


class Graphs:
    """Notes the batches that are decoded, and leaves them to the runner."""

    def __init__(self):
        self.batches = []

    def run(self, batch):
        self.batches.append(batch.token_ids.tolist())


@pytest.mark.parametrize(
    ("changes", "decoded"),
    [
        ({}, True),
        ({"samples": ("0-0", "9-0")}, True),
        ({"samples": ()}, False),
        ({"token_ids": (5, 6)}, False),
        # As many logits as tokens, in another order than the tokens'.
        ({"samples": (), "prompt_targets": (7,)}, False),
    ],
)
def test_what_is_given_to_the_graphs(device, changes, decoded):
    made = plan_of(0, 3, **GREEDY)
    entries = (made.scheduled[0]._replace(**changes), *made.scheduled[1:])
    met = (*made.new, new("9-0"))
    with device:
        runner = make_runner(False)
        runner.graphs = Graphs()
        runner.execute(StepPlan(entries, met))
    assert runner.graphs.batches == [[5, 5, 5]] * decoded


class Cache:
    """Notes what is done to it, in order."""

    layers = ()

    def __init__(self):
        self.done = []

    def __getattr__(self, name):
        return lambda blocks: self.done.append((name, blocks))


def test_what_is_done_before_a_step_in_order(monkeypatch):
    monkeypatch.setattr(Model, "device", torch.device("cpu"))
    runner, cache = make_runner(False), Cache()
    runner.cache = cache
    for name in ("meet", "forget"):
        monkeypatch.setattr(runner.sampler, name, getattr(cache, name))
    moves = {"swap_out": ((1, 2),), "copies": ((3, 4),), "swap_in": ((5, 6),)}
    runner.execute(plan(meet=[new("b")], finished=("a",), clear=(7, 8), **moves))
    assert cache.done == [
        ("forget", ("a",)),
        ("meet", (new("b"),)),
        ("clear", (7, 8)),
        ("swap_out", ((1, 2),)),
        ("copy", ((3, 4),)),
        ("swap_in", ((5, 6),)),
    ]


def test_what_is_asked_of_the_device_is_counted(device):
    with device:
        there = torch.ones(2).to(DEVICE)
        assert float(there[0]) == 1
        assert there.tolist() == [1, 1]
        there.copy_(torch.zeros(2))
    assert device.counts == (2, 1, 1)
