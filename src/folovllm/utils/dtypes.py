"""Which data type a model is computed in."""

import logging
from typing import TYPE_CHECKING

from folovllm.errors import ConfigError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def choose_dtype(
    asked: "torch.dtype | None", own: "torch.dtype | None", device: "torch.device"
) -> "torch.dtype":
    """The data type that was asked for, or for "auto" the one that suits the device.

    Float32 on a CPU, elsewhere the checkpoint's own half type, or float16 where it has none.
    A GPU before Ampere computes in bfloat16 by detours only: as in vLLM (`vllm/config/model.py`)
    it gets float16 in its place, or, where bfloat16 was asked for, nothing.

    Args:
        asked: `ModelConfig.torch_dtype`.
        own: the checkpoint's.
        device: where the model goes.

    Raises:
        ConfigError: the device has no such data type.
    """
    import torch

    why = _no_bfloat16(device)
    if asked is not None:
        if asked == torch.bfloat16 and why:
            raise ConfigError(f"dtype: {why}; take float16 (FOLOVLLM_DTYPE=float16) or float32")
        return asked
    if device.type == "cpu":
        return torch.float32
    if own == torch.bfloat16 and why:
        logger.warning(
            "%s: float16 is taken for this bfloat16 checkpoint; should numbers be too large for "
            "that, and requests fail for NaN, set FOLOVLLM_DTYPE=float32",
            why,
        )
        return torch.float16
    return own if own in {torch.float16, torch.bfloat16} else torch.float16


def _no_bfloat16(device: "torch.device") -> str | None:
    """Why a device has no bfloat16; None: it has, or is none that is known not to."""
    import torch

    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    if major >= 8:
        return None
    return (
        "bfloat16 needs a GPU of compute capability 8.0 or later (Ampere), and "
        f"{torch.cuda.get_device_name(device)} has {major}.{minor}"
    )
