"""The probes of the accelerators, run with attention and packing that are played on a CPU."""

import pytest
import torch

from env import probes


def played(causal_from="end", *, noise=0.0):
    """`flash_attn_varlen_func` as flash-attn documents it, by torch, a sequence at a time."""

    def attend(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal):
        assert causal
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert cu_seqlens_q[-1] == len(q)
        assert cu_seqlens_k[-1] == len(k) == len(v)
        assert max_seqlen_q == cu_seqlens_q.diff().max()
        assert max_seqlen_k == cu_seqlens_k.diff().max()
        outputs = []
        bounds = [cu_seqlens_q.tolist(), cu_seqlens_k.tolist()]
        for i in range(len(bounds[0]) - 1):
            query = q[bounds[0][i] : bounds[0][i + 1]]
            key, value = (x[bounds[1][i] : bounds[1][i + 1]] for x in (k, v))
            offset = len(key) - len(query) if causal_from == "end" else 0
            mask = torch.ones(len(query), len(key), dtype=torch.bool).tril(offset)
            parts = [x.transpose(0, 1)[None] for x in (query, key, value)]
            out = torch.nn.functional.scaled_dot_product_attention(
                *parts, attn_mask=mask, enable_gqa=True
            )
            outputs.append(out[0].transpose(0, 1))
        return torch.cat(outputs) * (1 + noise)

    return attend


def test_attention_that_is_right():
    said = probes.flash(played(), "cpu")

    assert said.startswith("agrees with torch's attention on cpu: bfloat16 within 0.0")
    assert "float16 within 0.00" in said


@pytest.mark.parametrize(
    "attend", [played("start"), played(noise=0.05), played(noise=float("nan"))]
)
def test_attention_that_is_wrong(attend):
    with pytest.raises(RuntimeError, match=r"its bfloat16 attention is off by"):
        probes.flash(attend, "cpu")


def test_packing_that_gives_back_what_it_was_given():
    def pack(torch, layer, scales, zeros, groups):
        codes = (layer.weight / scales[:, groups] + zeros[:, groups]).round()
        assert codes.min() >= 0
        assert codes.max() <= 15
        return (codes - zeros[:, groups]) * scales[:, groups]

    assert probes.quantised(pack).startswith("packs 4-bit weights and gives them back within")


def test_packing_that_changes_a_weight():
    def pack(torch, layer, scales, zeros, groups):
        return layer.weight + scales[:, groups] * (layer.weight == layer.weight.max())

    with pytest.raises(RuntimeError, match="a packed linear layer comes back changed, by"):
        probes.quantised(pack)
