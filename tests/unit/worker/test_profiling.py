"""What is measured on a GPU, with a device that is played."""

from types import SimpleNamespace

import pytest
import torch

from folovllm.worker import profiling
from folovllm.worker.profiling import Profile, profile_gpu

GIB = 1 << 30


@pytest.mark.parametrize(("bytes_a_token", "pays"), [(10, True), (49, True), (50, False)])
def test_swapping_pays_when_two_copies_are_faster(bytes_a_token, pays):
    profile = Profile(cache_bytes=0, seconds_a_token=1.0, copy_bandwidth=100)
    assert profile.swapping_pays(bytes_a_token) is pays


class Cuda:
    """A device of 80 GiB: 16 of weights, `others` of other processes, `peak` while it runs."""

    def __init__(self, others, peak):
        self.others, self.peak, self.in_run, self.steps = others, peak, 0, []

    def synchronize(self, device):
        pass

    def reset_peak_memory_stats(self, device):
        self.in_run = 0

    def run(self, ids, positions, recorder, rows):
        self.in_run = self.peak
        self.steps.append((len(ids), positions.tolist(), rows.tolist()))
        return torch.zeros(len(rows), 5)

    def memory_allocated(self, device):
        return 16 * GIB

    def max_memory_allocated(self, device):
        return 16 * GIB + self.in_run

    def empty_cache(self):
        pass

    def mem_get_info(self, device):
        return 80 * GIB - 16 * GIB - self.others, 80 * GIB


@pytest.mark.parametrize(
    ("others", "peak", "utilization", "left"),
    [(0, 0, 1.0, 64), (0, 4, 0.9, 52), (8, 4, 0.9, 44), (60, 4, 0.5, -40)],
)
def test_what_is_left_for_the_cache(monkeypatch, others, peak, utilization, left):
    cuda = Cuda(others * GIB, peak * GIB)
    monkeypatch.setattr(profiling.torch, "cuda", cuda)
    monkeypatch.setattr(profiling, "_copy_bandwidth", lambda device: 1e9)
    model = SimpleNamespace(device=torch.device("cpu"), forward=cuda.run)
    profile = profile_gpu(model, 24, 3, 10, utilization)
    assert profile.cache_bytes == left * GIB
    assert profile.seconds_a_token > 0
    assert profile.copy_bandwidth == 1e9
    # The largest step twice, at positions that the model has, with logits for every sequence.
    assert cuda.steps == [(24, [i % 10 for i in range(24)], [0, 1, 2])] * 2


def test_the_peak_of_what_was_before_does_not_count(monkeypatch):
    cuda = Cuda(0, 0)
    cuda.in_run = 30 * GIB
    monkeypatch.setattr(profiling.torch, "cuda", cuda)
    monkeypatch.setattr(profiling, "_copy_bandwidth", lambda device: 1e9)
    model = SimpleNamespace(device=torch.device("cpu"), forward=cuda.run)
    assert profile_gpu(model, 8, 8, 8, 1.0).cache_bytes == 64 * GIB
