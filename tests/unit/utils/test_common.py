import random
import uuid
from collections import OrderedDict, UserDict, defaultdict
from typing import NamedTuple

import numpy as np
import pytest
import torch

from folovllm.errors import ConfigError
from folovllm.utils import (
    generate_request_id,
    get_device,
    get_gpu_memory_info,
    is_cuda_available,
    move_to_device,
    print_gpu_memory_info,
    set_random_seed,
)

GIB = 2**30

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Pair(NamedTuple):
    left: object
    right: object


class ModelOutputLike(OrderedDict):
    """Refuses what transformers' ModelOutput refuses."""

    def update(self, *args, **kwargs):
        raise TypeError


@pytest.fixture(autouse=True)
def keep_random_states():
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch):
    """Two CUDA devices of 80 GiB, of which other processes hold 50 on the second."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    free = {0: 70 * GIB, 1: 30 * GIB}
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: (free[device.index or 0], 80 * GIB)
    )
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3 * GIB // 2)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * GIB)


class TestSetRandomSeed:
    def draw(self):
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    @pytest.mark.parametrize("seed", [0, 1, 42, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
    def test_a_seed_repeats_in_all_three(self, seed):
        set_random_seed(seed)
        first = self.draw()
        assert all(a != b for a, b in zip(first, self.draw(), strict=True))
        set_random_seed(seed)
        assert self.draw() == first

    def test_a_small_seed_is_each_librarys_own(self):
        set_random_seed(42)
        drawn = self.draw()
        random.seed(42)
        np.random.seed(42)
        torch.manual_seed(42)
        assert drawn == self.draw()

    def test_every_cuda_device_is_seeded(self, monkeypatch):
        seeds = []
        monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
        set_random_seed(7)
        assert seeds == [7]

    @pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "1", None, True])
    def test_a_wrong_seed_is_refused_and_seeds_nothing(self, seed):
        random.seed(5)
        state = random.getstate()
        with pytest.raises(ValueError, match=r"^seed must be an integer from 0 to ") as error:
            set_random_seed(seed)
        assert str(error.value).endswith(f"got {seed!r}")
        assert random.getstate() == state


def test_request_ids_are_fresh_uuid4_strings():
    ids = {generate_request_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(str(uuid.UUID(i)) == i and uuid.UUID(i).version == 4 for i in ids)


def test_is_cuda_available_is_torchs_answer(monkeypatch):
    for answer in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda answer=answer: answer)
        assert is_cuda_available() is answer


class TestGetDevice:
    def test_none_is_the_cpu_without_cuda(self, no_cuda):
        assert get_device() == get_device(None) == torch.device("cpu")

    def test_none_is_cuda_where_available(self, two_gpus):
        assert get_device() == torch.device("cuda")

    @pytest.mark.parametrize("device", ["cpu", "meta", torch.device("cpu")])
    def test_what_is_always_there(self, device):
        assert get_device(device) == torch.device(device)

    @pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1", torch.device("cuda", 1)])
    def test_cuda_where_it_is(self, two_gpus, device):
        assert get_device(device) == torch.device(device)

    @pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
    def test_cuda_where_it_is_not(self, no_cuda, device):
        with pytest.raises(ConfigError, match=rf'"{device}" was asked for.* no cuda device'):
            get_device(device)

    def test_an_index_beyond_the_last_device(self, two_gpus):
        with pytest.raises(ConfigError, match=r'"cuda:2" .* there are 2: "cuda:0" to "cuda:1"'):
            get_device("cuda:2")

    @pytest.mark.parametrize("device", ["vulkan", "hpu", "opengl"])
    def test_a_device_of_another_torch_build(self, device):
        with pytest.raises(ConfigError, match=f'"{device}" was asked for'):
            get_device(device)

    @pytest.mark.parametrize("device", ["gpu", "", " cuda", "cuda:x", "cuda:-1", 0, True, 1.5])
    def test_what_is_no_device(self, device):
        with pytest.raises(ConfigError, match='device must be like "cpu"') as error:
            get_device(device)
        assert str(error.value).endswith(f"got {device!r}")


class TestMoveToDevice:
    """ "meta" is a device every machine has, and another than the CPU."""

    @pytest.mark.parametrize(
        ("build", "find"),
        [
            (lambda t: t, lambda v: v),
            (lambda t: [t, 1], lambda v: v[0]),
            (lambda t: (1, t), lambda v: v[1]),
            (lambda t: {"a": t}, lambda v: v["a"]),
            (lambda t: OrderedDict(a=t), lambda v: v["a"]),
            (lambda t: defaultdict(list, a=t), lambda v: v["a"]),
            (lambda t: UserDict(a=t), lambda v: v["a"]),
            (lambda t: ModelOutputLike([("a", t)]), lambda v: v["a"]),
            (lambda t: Pair(1, t), lambda v: v.right),
            (lambda t: {"a": [(Pair({"b": t}, None),)]}, lambda v: v["a"][0][0].left["b"]),
        ],
    )
    def test_moves_tensors_and_keeps_the_structure(self, build, find):
        tensor = torch.ones(2)
        value = build(tensor)
        moved = move_to_device(value, "meta")
        assert type(moved) is type(value)
        assert find(moved).device.type == "meta"
        assert find(value) is tensor

    @pytest.mark.parametrize(
        "value", [None, 1, 2.5, "text", {1, 2}, [], (), {}, torch.Size([2, 3]), Pair(1, 2)]
    )
    def test_leaves_the_rest_alone(self, value):
        moved = move_to_device(value, torch.device("meta"))
        assert moved == value
        assert type(moved) is type(value)

    def test_keeps_what_a_mapping_has_besides_its_items(self):
        moved = move_to_device(defaultdict(list, a=torch.ones(1)), "meta")
        assert moved["missing"] == []

    def test_a_tensor_already_there_is_the_same_one(self):
        tensor = torch.ones(1)
        assert move_to_device([tensor], "cpu")[0] is tensor

    def test_a_missing_device_is_named(self, no_cuda):
        with pytest.raises(ConfigError, match='"cuda" was asked for'):
            move_to_device([], "cuda")


class TestGpuMemory:
    def test_without_cuda_there_is_nothing_to_say(self, no_cuda, capsys):
        assert get_gpu_memory_info() == {}
        print_gpu_memory_info()
        assert capsys.readouterr().out == "GPU 0: no CUDA device\n"

    @pytest.mark.parametrize("device", [1, "cuda:1", torch.device("cuda:1")])
    def test_gib_with_free_as_the_driver_reports_it(self, two_gpus, device):
        assert get_gpu_memory_info(device) == {
            "allocated_gb": 1.5,
            "reserved_gb": 2.0,
            "free_gb": 30.0,
            "total_gb": 80.0,
        }

    def test_the_first_device_is_the_default(self, two_gpus):
        assert get_gpu_memory_info()["free_gb"] == 70.0

    @pytest.mark.parametrize("device", [2, -1, "cuda:2", "gpu"])
    def test_a_device_that_is_not_there(self, two_gpus, device):
        with pytest.raises(ConfigError, match=f"{device}"):
            get_gpu_memory_info(device)

    def test_one_line_is_printed(self, two_gpus, capsys):
        print_gpu_memory_info(1)
        assert capsys.readouterr().out == (
            "GPU 1: 30.00 of 80.00 GiB free; this process: 1.50 GiB allocated, 2.00 GiB reserved\n"
        )


@pytest.mark.gpu
@needs_gpu
class TestOnAGpu:
    def test_seeds_the_device(self):
        set_random_seed(3)
        first = torch.rand(4, device="cuda")
        set_random_seed(3)
        assert torch.equal(first, torch.rand(4, device="cuda"))

    def test_moves_there_and_back(self):
        moved = move_to_device({"a": [torch.arange(3)]}, get_device())
        assert moved["a"][0].is_cuda
        assert move_to_device(moved, "cpu")["a"][0].tolist() == [0, 1, 2]

    def test_memory_adds_up(self):
        before = get_gpu_memory_info()
        tensor = torch.empty(GIB // 4, dtype=torch.uint8, device="cuda")
        info = get_gpu_memory_info()
        assert info["allocated_gb"] - before["allocated_gb"] == pytest.approx(0.25)
        assert info["allocated_gb"] <= info["reserved_gb"] <= info["total_gb"]
        assert info["free_gb"] <= info["total_gb"] - info["reserved_gb"]
        del tensor

    def test_a_device_beyond_the_last(self):
        with pytest.raises(ConfigError, match="there are"):
            get_device(f"cuda:{torch.cuda.device_count()}")
