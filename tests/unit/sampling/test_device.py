"""Both ways of each operation, on a CPU: what they give is the same."""

import numpy as np
import pytest
import torch

from folovllm.sampling.device import CpuOps, GpuOps, device_ops

SIZES = [1, 5, 64, 100, 640, 6400]


@pytest.fixture(params=[CpuOps(), GpuOps()], ids=["cpu", "gpu"])
def device(request):
    return request.param


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_is_chosen_by_the_device():
    assert isinstance(device_ops(torch.device("cpu")), CpuOps)
    assert isinstance(device_ops(torch.device("cuda", 1)), GpuOps)


class TestLargest:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_is_the_first_of_the_greatest(self, device, size, dtype):
        logits = (normal(7, size) * 4).round().to(dtype)  # ties
        values, places = device.largest(logits)
        expected = logits.float().numpy()
        assert places.tolist() == expected.argmax(-1).tolist()
        assert values.tolist() == expected.max(-1).tolist()

    @pytest.mark.parametrize("size", [64, 100, 640])
    def test_nan_and_infinities_show_in_the_value(self, device, size):
        logits = normal(4, size)
        logits[0, 3] = torch.nan
        logits[1, 4] = torch.inf
        logits[2] = -torch.inf
        values = device.largest(logits)[0]
        assert values[0].isnan()
        assert values[1:3].tolist() == [torch.inf, -torch.inf]
        assert values[3].isfinite()

    def test_rows_may_be_views(self, device):
        wide = normal(3, 2, 200)
        expected = wide[:, 1, :128].argmax(-1).tolist()
        assert device.largest(wide[:, 1, :128])[1].tolist() == expected
        one = normal(1, 128)
        assert device.largest(one.expand(4, -1))[1].tolist() == [int(one.argmax())] * 4


class TestTop:
    @pytest.mark.parametrize(("size", "count"), [(100, 3), (640, 2), (6400, 20), (6400, 6400)])
    def test_agrees_with_sorting(self, device, size, count):
        logits = normal(5, size)
        values, places = device.top(logits, count)
        order = np.argsort(-logits.numpy(), -1)[:, :count]
        assert places.tolist() == order.tolist()
        assert torch.equal(values, logits.gather(1, places))


class TestColumns:
    @pytest.mark.parametrize("size", [64, 9000])
    def test_sorted(self, device, size):
        values = normal(3, size)
        before = values.clone()
        assert torch.equal(device.sort(values), values.sort(-1, descending=True).values)
        assert torch.equal(values, before)

    @pytest.mark.parametrize("size", [64, 20000])
    def test_in_blocks(self, device, size):
        values = normal(3, size)
        assert torch.equal(torch.cat(device.blocks(values), 1), values)
