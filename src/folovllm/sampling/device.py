"""What is computed in one way on a CPU and in another on a GPU."""

from typing import Protocol

import numpy as np
import torch

from folovllm.sampling.ops import CHUNK, all_rows

_BLOCK = 8192


class DeviceOps(Protocol):
    """The operations of sampling whose fastest form depends on the device.

    Attributes:
        seeks_candidates: whether truncation is faster when it looks at the most likely tokens
            first, and then at all tokens of the rows for which these were not enough.
    """

    seeks_candidates: bool

    def largest(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the greatest value of each row, and the first place where it stands.

        NaN counts as the greatest.

        Args:
            logits: [rows, vocab], of any floating-point type.

        Returns:
            The values and the places, both [rows].
        """
        ...

    def top(self, logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the `count` greatest of each row, in descending order, and their places."""
        ...

    def sort(self, values: torch.Tensor) -> torch.Tensor:
        """Return each row in descending order."""
        ...

    def blocks(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Split the columns into parts that are best worked on one by one."""
        ...


class GpuOps:
    """One kernel for all of it, and nothing that the host would have to wait for."""

    # A GPU sorts fast, and asking it which rows are left to sort would make the host wait.
    seeks_candidates = False

    def largest(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the greatest of each row: `DeviceOps.largest`."""
        values, places = logits.max(-1)
        return values, places

    def top(self, logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the greatest of each row: `DeviceOps.top`."""
        values, places = logits.topk(count)
        return values, places

    def sort(self, values: torch.Tensor) -> torch.Tensor:
        """Sort each row: `DeviceOps.sort`."""
        return values.sort(-1, descending=True).values

    def blocks(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return all columns together."""
        return (tensor,)


class CpuOps:
    """Reduces chunks of the vocabulary first, and works on what fits into the cache."""

    seeks_candidates = True

    def largest(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the greatest of each row: `DeviceOps.largest`."""
        if logits.shape[1] % CHUNK:
            values, places = logits.max(-1)
            return values, places
        # `max` over a dimension takes nine times as long as `amax`, which gives no places.
        chunks = logits.unflatten(1, (-1, CHUNK))
        chunk = chunks.amax(-1).argmax(-1)
        values, places = chunks[all_rows(logits), chunk].max(-1)
        return values, chunk * CHUNK + places

    def top(self, logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the greatest of each row: `DeviceOps.top`."""
        if logits.shape[1] % CHUNK or count * CHUNK * 4 > logits.shape[1]:
            values, places = logits.topk(count)
            return values, places
        # They are all in the `count` chunks with the greatest peaks.
        chunks = logits.unflatten(1, (-1, CHUNK))
        chosen = chunks.amax(-1).topk(count).indices
        values, inside = chunks[all_rows(logits)[:, None], chosen].flatten(1).topk(count)
        return values, chosen.gather(1, inside // CHUNK) * CHUNK + inside % CHUNK

    def sort(self, values: torch.Tensor) -> torch.Tensor:
        """Sort each row: `DeviceOps.sort`."""
        # NumPy sorts values alone, with vector instructions: 30 times as fast as torch.
        negated = -values
        np.ndarray.sort(negated.numpy(), axis=-1)
        return negated.neg_()

    def blocks(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Split the columns: work on all of them at once would miss the cache."""
        blocks: tuple[torch.Tensor, ...] = tensor.split(_BLOCK, 1)
        return blocks


def device_ops(device: torch.device) -> DeviceOps:
    """Return what suits a device."""
    return CpuOps() if device.type == "cpu" else GpuOps()
