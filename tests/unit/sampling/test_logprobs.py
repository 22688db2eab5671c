import numpy as np
import pytest
import torch

from folovllm.sampling import logprobs
from folovllm.sampling.device import CpuOps, DeviceOps, GpuOps

VOCAB = 9000  # more than one block of columns


@pytest.fixture(params=[CpuOps(), GpuOps()], ids=["cpu", "gpu"])
def device(request):
    return request.param


def log_softmax(logits: torch.Tensor) -> np.ndarray:
    z = logits.double().numpy()
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [0, 3, 40, VOCAB])
def test_agrees_with_the_definition(device, dtype, count):
    logits = (torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    tokens = [0, 5, 700, 8999]
    expected = log_softmax(logits)
    table = logprobs.tabulate(logits, torch.tensor(tokens), count, device).numpy()
    chosen = expected[np.arange(4), tokens]
    np.testing.assert_allclose(table[:, 0], chosen, rtol=1e-6)
    assert table[:, 1].tolist() == (expected >= chosen[:, None]).sum(-1).tolist()
    np.testing.assert_allclose(table[:, 2 : 2 + count], -np.sort(-expected)[:, :count], rtol=1e-6)
    ids = table[:, 2 + count :].astype(int)
    np.testing.assert_allclose(
        table[:, 2 : 2 + count], np.take_along_axis(expected, ids, 1), rtol=1e-6
    )


def test_large_logits_do_not_overflow(device):
    table = logprobs.tabulate(torch.tensor([[3e38, -3e38, 3e38]]), torch.tensor([0]), 0, device)
    assert table[0].tolist() == pytest.approx([-np.log(2), 2], rel=1e-6)  # the last of the ties


def entries(
    device: DeviceOps, logits: list[float], token: int, count: int
) -> dict[int, tuple[float, int]]:
    table = logprobs.tabulate(torch.tensor([logits]).log(), torch.tensor([token]), count, device)
    [found] = logprobs.to_dicts([token], table.tolist(), count)
    return {i: (round(float(np.exp(e.logprob)), 4), e.rank) for i, e in found.items()}


def test_the_chosen_token_comes_first_and_once(device):
    p = [0.1, 0.4, 0.3, 0.2]
    assert list(entries(device, p, 2, 2).items()) == [(2, (0.3, 2)), (1, (0.4, 1))]
    assert list(entries(device, p, 0, 2).items()) == [(0, (0.1, 4)), (1, (0.4, 1)), (2, (0.3, 2))]
    assert entries(device, p, 0, 0) == {0: (0.1, 4)}
    assert list(entries(device, p, 3, 4)) == [3, 1, 2, 0]


def test_ranks_of_ties(device):
    p = [0.2, 0.2, 0.2, 0.4]
    assert entries(device, p, 1, 0) == {1: (0.2, 4)}
    ranks = sorted(rank for _, rank in entries(device, p, 1, 4).values())
    assert ranks == [1, 2, 3, 4]


def test_what_is_impossible_has_minus_infinity(device):
    table = logprobs.tabulate(torch.tensor([[0.0, -torch.inf]]), torch.tensor([1]), 2, device)
    assert table[0].tolist() == [-np.inf, 2, 0, -np.inf, 0, 1]
