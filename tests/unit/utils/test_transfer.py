import numpy as np
import torch
from hypothesis import given, strategies as st

from folovllm.utils.transfer import pack, send, unpack

CPU = torch.device("cpu")


@st.composite
def arrays(draw):
    dtype = st.sampled_from([np.int32, np.int64, np.float32, np.uint8])
    shape = st.lists(st.integers(0, 5), min_size=1, max_size=3)
    made = []
    for _ in range(draw(st.integers(1, 5))):
        size = draw(shape)
        made.append(np.arange(np.prod(size)).astype(draw(dtype)).reshape(size))
    return made


@given(arrays())
def test_what_was_packed_comes_out(made):
    tensors = unpack(pack(made, pinned=False), made)
    for tensor, array in zip(tensors, made, strict=True):
        assert tensor.numpy().dtype == array.dtype
        assert np.array_equal(tensor.numpy(), array)
    # Where a kernel can read several numbers at once.
    assert all(t.storage_offset() * t.itemsize % 16 == 0 for t in tensors)


def test_a_part_of_a_table_can_be_packed():
    table = np.arange(20, dtype=np.int32).reshape(4, 5)[:3, :1]
    (tensor,) = unpack(pack([table], pinned=False), [table])
    assert tensor.tolist() == [[0], [5], [10]]


def test_on_a_cpu_nothing_is_copied():
    array = np.arange(3)
    (tensor,) = send([array], CPU)
    array[0] = 7
    assert tensor.tolist() == [7, 1, 2]


def test_elsewhere_it_is_one_copy(monkeypatch):
    copies = []
    to = torch.Tensor.to

    def note(tensor, device, **options):
        copies.append((tensor.dtype, device.type, options))
        return to(tensor, device, **options)

    monkeypatch.setattr(torch.Tensor, "to", note)
    sent = send([np.arange(3), np.ones((2, 2), np.int32)], torch.device("meta"))
    assert copies == [(torch.uint8, "meta", {"non_blocking": True})]
    assert [(t.shape, t.dtype) for t in sent] == [((3,), torch.int64), ((2, 2), torch.int32)]
