import math

import pytest
import torch
from hypothesis import given, settings

from folovllm.attention.backend import AttentionOptions, LayerCache
from folovllm.attention.sdpa import SdpaBackend
from tests.unit.attention.reference import cases, check, make_batch, random_tables


@settings(max_examples=150, deadline=None)
@given(cases())
def test_attends_as_the_definition_says(case):
    check(SdpaBackend(), case)


@settings(max_examples=20, deadline=None)
@given(cases(dtypes=(torch.bfloat16, torch.float16)))
def test_in_16_bits(case):
    check(SdpaBackend(), case)


@pytest.mark.parametrize("window", [None, 5])
def test_layers_share_what_was_built_once(window):
    """The masks that the first layer makes serve the second."""
    parts = [(7, 1), (2, 1), (0, 3)]
    tables, num_blocks = random_tables(parts, 4, torch.Generator().manual_seed(0))
    backend = SdpaBackend()
    metadata = backend.build(make_batch(parts, tables, 4), torch.device("cpu"))
    options = AttentionOptions(scale=1 / math.sqrt(8), window=window)
    torch.manual_seed(0)
    tensors = [torch.randn(1, 2, 5, 8) for _ in range(3)]
    outputs = []
    for _ in range(2):
        cache = LayerCache(*(torch.ones(num_blocks, 4, 2, 8) for _ in range(2)))
        outputs.append(backend.attend(metadata, cache, *tensors, options))
    assert torch.equal(outputs[0], outputs[1])


def test_is_not_captured():
    assert not SdpaBackend().captures
    with pytest.raises(NotImplementedError, match="sdpa backend cannot be captured"):
        SdpaBackend().capture(1, 1, 1, torch.device("cpu"))
