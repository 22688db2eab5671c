"""What is measured on a GPU, with a device that is played."""

import pytest
import torch

from folovllm.attention.backend import AttentionOptions, LayerSpec
from folovllm.attention.sdpa import SdpaBackend
from folovllm.errors import ConfigError
from folovllm.worker import memory
from folovllm.worker.memory import Profile, profile_gpu

GIB = 1 << 30


@pytest.mark.parametrize(("bytes_a_token", "pays"), [(10, True), (49, True), (50, False)])
def test_swapping_pays_when_two_copies_are_faster(bytes_a_token, pays):
    profile = Profile(cache_bytes=0, seconds_a_token=1.0, copy_bandwidth=100)
    assert profile.swapping_pays(bytes_a_token) is pays


class Cuda:
    """A device of 80 GiB: 16 of weights, `others` of other processes, `peak` while it runs."""

    def __init__(self, others=0, peak=0):
        self.others, self.peak, self.in_run = others, peak, 0

    def synchronize(self, device):
        pass

    def reset_peak_memory_stats(self, device):
        self.in_run = 0

    def memory_allocated(self, device):
        return 16 * GIB

    def max_memory_allocated(self, device):
        return 16 * GIB + self.in_run

    def empty_cache(self):
        pass

    def mem_get_info(self, device):
        return 80 * GIB - 16 * GIB - self.others, 80 * GIB


class Model:
    """Three layers of two kinds; notes what it is run on."""

    device, dtype, vocab_size = torch.device("cpu"), torch.float32, 5
    layers = [LayerSpec(1, 4, 4), LayerSpec(2, 4, 8), LayerSpec(1, 4, 4)]  # noqa: RUF012

    def __init__(self, cuda):
        self.cuda, self.steps, self.outputs = cuda, [], []

    def forward(self, ids, positions, step, rows):
        self.cuda.in_run = self.cuda.peak
        self.steps.append((len(ids), positions.tolist(), rows.tolist()))
        for layer, spec in enumerate(self.layers):
            numbers = positions + 1.0
            key, value = (
                numbers.expand(1, spec.num_kv_heads, size, -1).transpose(2, 3)
                for size in (spec.key_size, spec.value_size)
            )
            query = torch.zeros(1, 2, len(ids), spec.key_size)
            self.outputs.append(step.attend(layer, query, key, value, AttentionOptions(1.0)))
        return torch.zeros(len(rows), 5)


@pytest.fixture
def profile(monkeypatch):
    """A function that profiles a played device."""
    monkeypatch.setattr(memory, "_copy_bandwidth", lambda device: 1e9)

    def run(cuda, num_tokens=24, num_seqs=3, max_model_len=10, utilization=1.0, backend=None):
        model = Model(cuda)
        for name in (name for name in vars(Cuda) if not name.startswith("_")):
            monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
        backend = backend or SdpaBackend()
        return model, profile_gpu(
            model, backend, 4, num_tokens, num_seqs, max_model_len, utilization
        )

    return run


@pytest.mark.parametrize(
    ("others", "peak", "utilization", "left"),
    [(0, 0, 1.0, 64), (0, 4, 0.9, 52), (8, 4, 0.9, 44), (60, 4, 0.5, -40)],
)
def test_what_is_left_for_the_cache(profile, others, peak, utilization, left):
    model, measured = profile(Cuda(others * GIB, peak * GIB), utilization=utilization)
    assert measured.cache_bytes == left * GIB
    assert measured.seconds_a_token > 0
    assert measured.copy_bandwidth == 1e9
    # The largest step twice, at positions that the model has, with logits for every sequence.
    assert model.steps == [(24, [i % 10 for i in range(24)], [0, 1, 2])] * 2


def test_attends_as_in_a_real_step(profile):
    """Each prompt to itself alone: the mean of the numbers up to its own."""
    model, _ = profile(Cuda())
    means = torch.tensor([(i % 10 + 2) / 2 for i in range(24)])
    assert len(model.outputs) == 6
    for output, spec in zip(model.outputs, model.layers * 2, strict=True):
        assert output.shape == (1, 24, 2, spec.value_size)
        torch.testing.assert_close(output, means[None, :, None, None].expand_as(output))


def test_samples_in_every_way(profile, monkeypatch):
    seen = []
    sample = memory.Sampler.sample

    def note(sampler, logits, seq_ids):
        sampled = sample(sampler, logits, seq_ids)
        seen.append((len(sampled.token_ids), sampled.logprobs is not None))
        return sampled

    monkeypatch.setattr(memory.Sampler, "sample", note)
    profile(Cuda(), num_seqs=100)
    assert seen == [(24, True)] * 2  # no more sequences than tokens


def test_the_peak_of_what_was_before_does_not_count(profile):
    cuda = Cuda()
    cuda.in_run = 30 * GIB
    assert profile(cuda)[1].cache_bytes == 64 * GIB


def test_a_step_that_does_not_fit(profile):
    class Full(SdpaBackend):
        def attend(self, *_):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ConfigError, match=r"a step of 24 tokens .* lower max_num_batched_tokens"):
        profile(Cuda(), backend=Full())
