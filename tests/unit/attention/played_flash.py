"""A `flash_attn` that is played: it refuses what the real one refuses, and computes slowly.

The checks are those of `mha_varlen_fwd` in flash-attn 2.8.3's `csrc/flash_attn/flash_api.cpp`,
but for the device, and a few more for what would be read or written where it should not.
And batches to try either on.
"""

from importlib.machinery import ModuleSpec
from types import ModuleType

import torch

from folovllm.attention.backend import LayerCache
from tests.unit.attention.reference import make_batch


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    check_tensors(q, k, v, cu_seqlens_q, cu_seqlens_k, block_table)
    check_lengths(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, block_table)
    assert (dropout_p, alibi_slopes, return_attn_probs) == (0.0, None, False)
    assert isinstance(softmax_scale, float)
    assert isinstance(softcap, float)
    assert isinstance(window_size, tuple)
    assert causal
    left, right = window_size
    assert left == right == -1 or (left >= 0 and right == 0)
    output = torch.empty_like(q)
    ends_q, ends_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for i, table in enumerate(block_table.tolist()):
        rows = slice(ends_q[i], ends_q[i + 1])
        length = ends_k[i + 1] - ends_k[i]
        pages = table[: -(-length // k.shape[1])]
        keys, values = (part[pages].flatten(0, 1)[:length] for part in (k, v))
        output[rows] = attend(q[rows], keys, values, softmax_scale, left, softcap).to(q.dtype)
    return output


def check_tensors(q, k, v, cu_seqlens_q, cu_seqlens_k, block_table):
    assert q.dtype in {torch.float16, torch.bfloat16}
    assert k.dtype == v.dtype == q.dtype
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == block_table.dtype == torch.int32
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == block_table.stride(-1) == 1
    assert cu_seqlens_q.is_contiguous()
    assert cu_seqlens_k.is_contiguous()
    assert q.dim() == 3
    heads, size = q.shape[1:]
    assert size % 8 == 0
    assert size <= 256
    assert k.dim() == 4
    num_blocks, page, kv_heads, _ = k.shape
    assert page % 256 == 0
    assert k.shape == v.shape == (num_blocks, page, kv_heads, size)
    assert heads % kv_heads == 0
    batch = len(cu_seqlens_q) - 1
    assert batch > 0
    assert cu_seqlens_k.shape == (batch + 1,)
    assert block_table.dim() == 2
    assert len(block_table) == batch


def check_lengths(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, block_table):
    """What the kernels believe without a look."""
    queries, lengths = cu_seqlens_q.diff(), cu_seqlens_k.diff()
    assert type(max_seqlen_q) is type(max_seqlen_k) is int
    assert cu_seqlens_q[0] == cu_seqlens_k[0] == 0
    assert cu_seqlens_q[-1] == len(q)
    assert (queries > 0).all()
    assert (queries <= lengths).all()
    assert queries.max() <= max_seqlen_q
    assert lengths.max() <= max_seqlen_k
    assert lengths.max() <= block_table.shape[1] * k.shape[1]
    assert ((block_table >= 0) & (block_table < len(k))).all()
    if max_seqlen_q == 1:  # then a token a sequence is taken for granted
        assert len(q) == len(block_table)


def attend(query, keys, values, scale, left, softcap):
    """One sequence in float64: `[t, heads, size]` to `[length, kv_heads, size]`."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (part.double().repeat_interleave(group, 1) for part in (keys, values))
    scores = torch.einsum("thd,lhd->htl", query.double(), keys) * scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    places = torch.arange(len(keys), device=keys.device)
    last = places[len(keys) - len(query) :, None]
    seen = places <= last
    if left >= 0:
        seen &= places >= last - left
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("htl,lhd->thd", weights, values)


class Case:
    """A batch over a cache whose unused slots hold NaN."""

    def __init__(
        self,
        parts,
        *,
        heads=4,
        kv_heads=2,
        size=8,
        page=256,
        dtype=torch.bfloat16,
        device="cpu",
        seed=0,
    ):
        generator = torch.Generator().manual_seed(seed)

        def random(*shape):
            return torch.randn(*shape, generator=generator).to(device, dtype)

        widths = [-(-(context + count) // page) for context, count in parts]
        order = (torch.randperm(sum(widths), generator=generator) + 1).tolist()
        self.tables = [[order.pop() for _ in range(width)] for width in widths]
        self.cache = LayerCache(
            *(
                torch.full(
                    (sum(widths) + 1, page, kv_heads, size), torch.nan, dtype=dtype, device=device
                )
                for _ in range(2)
            )
        )
        self.device = torch.device(device)
        inputs, self.whole = [], []
        for table, (context, count) in zip(self.tables, parts, strict=True):
            places = torch.arange(context + count)
            slots = (torch.tensor(table)[places // page] * page + places % page).to(device)
            kv = [random(context + count, kv_heads, size) for _ in range(2)]
            for pages, numbers in zip(self.cache, kv, strict=True):
                pages.flatten(0, 1)[slots[:context]] = numbers[:context]
            query = random(count, heads, size)
            inputs.append((query, *(numbers[context:] for numbers in kv)))
            self.whole.append((query, *kv))
        self.batch = make_batch(parts, self.tables, page)
        self.slots = torch.from_numpy(self.batch.slots).to(device)
        flat = [torch.cat(tensors) for tensors in zip(*inputs, strict=True)]
        self.tensors = [tensor.transpose(0, 1)[None] for tensor in flat]

    def run(self, backend, options, metadata=None):
        """The output, and the cache that it leaves."""
        cache = LayerCache(*(pages.clone() for pages in self.cache))
        if metadata is None:
            metadata = backend.build(self.batch, self.device)
        return backend.attend(metadata, cache, *self.tensors, options), cache

    def expected(self, options):
        """The output in float64."""
        left = -1 if options.window is None else options.window - 1
        softcap = options.softcap or 0.0
        parts = [attend(*part, options.scale, left, softcap) for part in self.whole]
        return torch.cat(parts)[None]


def make_module(**names):
    """The module to put into `sys.modules`, with these names in place of the real one's."""
    module = ModuleType("flash_attn")
    module.__spec__ = ModuleSpec("flash_attn", None, origin="played")
    vars(module).update(names or {"flash_attn_varlen_func": flash_attn_varlen_func})
    return module
