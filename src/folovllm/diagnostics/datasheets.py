"""What the makers of well-known GPUs promise: what measured figures are a share of."""

from typing import NamedTuple


class Datasheet(NamedTuple):
    """A GPU's limits.

    Attributes:
        bandwidth: of its memory, in GB/s.
        rate: of dense matrix products in bfloat16 (float16 where it has no bfloat16) that are
            summed in float32, in TFLOP/s.
        link: of its connection to the host, each way, in GB/s.
    """

    bandwidth: float
    rate: float
    link: float


# PCI Express with 16 lanes.
_PCIE3, _PCIE4, _PCIE5 = 15.75, 31.5, 63.0

# From NVIDIA's datasheets and architecture papers, without sparsity, by what torch calls the GPU.
_DATASHEETS = {
    "Tesla T4": Datasheet(320, 65, _PCIE3),
    "Tesla V100-SXM2-16GB": Datasheet(900, 125, _PCIE3),
    "Tesla V100-SXM2-32GB": Datasheet(900, 125, _PCIE3),
    "Tesla V100-PCIE-16GB": Datasheet(900, 112, _PCIE3),
    "Tesla V100-PCIE-32GB": Datasheet(900, 112, _PCIE3),
    "NVIDIA A100-SXM4-40GB": Datasheet(1555, 312, _PCIE4),
    "NVIDIA A100-SXM4-80GB": Datasheet(2039, 312, _PCIE4),
    "NVIDIA A100-PCIE-40GB": Datasheet(1555, 312, _PCIE4),
    "NVIDIA A100 80GB PCIe": Datasheet(1935, 312, _PCIE4),
    "NVIDIA A10": Datasheet(600, 125, _PCIE4),
    "NVIDIA A10G": Datasheet(600, 70, _PCIE4),
    "NVIDIA L4": Datasheet(300, 121, _PCIE4),
    "NVIDIA L40S": Datasheet(864, 362, _PCIE4),
    "NVIDIA H100 80GB HBM3": Datasheet(3350, 989, _PCIE5),
    "NVIDIA H100 PCIe": Datasheet(2039, 756, _PCIE5),
    "NVIDIA H100 NVL": Datasheet(3938, 835, _PCIE5),
    "NVIDIA H200": Datasheet(4800, 989, _PCIE5),
    "NVIDIA H200 NVL": Datasheet(4800, 835, _PCIE5),
    "NVIDIA B200": Datasheet(8000, 2250, _PCIE5),
    "NVIDIA GeForce RTX 3090": Datasheet(936, 71, _PCIE4),
    "NVIDIA GeForce RTX 4090": Datasheet(1008, 165, _PCIE4),
    "NVIDIA GeForce RTX 5090": Datasheet(1792, 209, _PCIE5),
}


def datasheet_of(name: str) -> Datasheet | None:
    """The datasheet of a GPU by torch's name for it; None for one that is not known here.

    The whole name counts: a laptop's chip or a part of a divided GPU is another device.
    """
    return _DATASHEETS.get(name)
