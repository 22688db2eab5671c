"""Drawing from what min-p, top-k and top-p leave of a distribution.

Each of the three keeps the tokens from some probability on, so together they are one cutoff a
row. Tokens that tie at the cutoff are all kept, as vLLM's top-k does
(`vllm/v1/sample/ops/topk_topp_sampler.py`): what is kept depends on no order.

Everything here is in scaled logits, log(p / max p): at most 0. Finding the cutoff takes the
values in order, and sorting the vocabulary is what makes truncated sampling slow. On a CPU only
the chunks with the greatest peaks are sorted; for the few rows where the cutoff turns out to be
below what these can tell, all is.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from folovllm.sampling.device import DeviceOps
from folovllm.sampling.ops import CHUNK, all_rows, search

_CANDIDATE_CHUNKS = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """What to keep of each row: all are [rows].

    Attributes:
        log_min_p: float32, log(min_p), -inf for no limit.
        top_k: int64, the vocabulary's size or more for no limit.
        top_p: float64, 1 for no limit.
        vocab_size: the vocabulary's size.
    """

    log_min_p: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    vocab_size: int

    @property
    def unbounded(self) -> torch.Tensor:
        """Whether neither min-p nor top-k limits a row: top-p is then of the whole of it."""
        return (self.top_k >= self.vocab_size) & (self.log_min_p == -torch.inf)

    def of(self, rows: torch.Tensor) -> "Limits":
        """Return the limits of some rows."""
        return Limits(self.log_min_p[rows], self.top_k[rows], self.top_p[rows], self.vocab_size)


@dataclass(frozen=True, slots=True)
class Cutoffs:
    """From where on tokens are kept: all are [rows].

    Attributes:
        before_top_p: the least scaled logit that min-p and top-k keep, -inf for all.
        final: the least that is kept after top-p as well.
        found: whether the values given were enough to tell.
    """

    before_top_p: torch.Tensor
    final: torch.Tensor
    found: torch.Tensor


def cutoffs(ordered: torch.Tensor, limits: Limits, totals: torch.Tensor | None = None) -> Cutoffs:
    """Find the cutoff of each row: min-p, then top-k, then top-p of what these leave.

    Args:
        ordered: [rows, n] scaled logits, the greatest first, n in whole chunks.
        limits: of the rows.
        totals: [rows] in float64, the sums of the whole rows' exponentials, where `ordered` is
            not the whole row.
    """
    size = ordered.shape[1]
    kth = ordered.gather(1, (limits.top_k.clamp(max=size) - 1)[:, None])[:, 0]
    no_top_k = limits.top_k >= limits.vocab_size
    low = torch.maximum(kth.masked_fill(no_top_k, -torch.inf), limits.log_min_p)
    weights = ordered.masked_fill(ordered < low[:, None], -torch.inf).exp_()
    mass = weights.unflatten(1, (-1, CHUNK)).sum(-1).sum(-1, dtype=torch.float64)
    whole = mass if totals is None else torch.where(limits.unbounded, totals, mass)
    place = search(weights, limits.top_p, whole, inclusive=True)
    nucleus = ordered.gather(1, place[:, None])[:, 0]
    no_top_p = limits.top_p >= 1
    found = (no_top_k | (limits.top_k <= size)) & (no_top_p | (limits.top_p * whole <= mass))
    return Cutoffs(low, torch.where(no_top_p, low, torch.maximum(low, nucleus)), found)


def draw_truncated(
    scaled: torch.Tensor, limits: Limits, uniforms: torch.Tensor, device: DeviceOps
) -> torch.Tensor:
    """Draw a token a row from what the limits leave.

    Args:
        scaled: [rows, n] scaled logits in whole chunks, the greatest of each row 0; left as is.
        limits: of the rows.
        uniforms: [rows] in float64, in [0, 1).
        device: the operations of the tensors' device.

    Returns:
        [rows] token ids.
    """
    if not device.seeks_candidates or scaled.shape[1] < 4 * _CANDIDATE_CHUNKS * CHUNK:
        return _draw_sorted(scaled, limits, uniforms, device)
    tokens, found = _draw_candidates(scaled, limits, uniforms, device)
    rest = (~found).nonzero()[:, 0]
    if len(rest):
        tokens[rest] = _draw_sorted(scaled[rest], limits.of(rest), uniforms[rest], device)
    return tokens


def _draw_sorted(
    scaled: torch.Tensor, limits: Limits, uniforms: torch.Tensor, device: DeviceOps
) -> torch.Tensor:
    return search(_kept(scaled, cutoffs(device.sort(scaled), limits).final), uniforms)


def _draw_candidates(
    scaled: torch.Tensor, limits: Limits, uniforms: torch.Tensor, device: DeviceOps
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from the chunks with the greatest peaks; say where that is the whole truth."""
    chunks = scaled.unflatten(1, (-1, CHUNK))
    top = chunks.amax(-1).topk(_CANDIDATE_CHUNKS + 1)
    bound = top.values[:, -1]  # nothing outside of the candidates is greater
    # In the vocabulary's order, so that a number draws the same token as from the whole row.
    places = top.indices[:, :-1].sort(-1).values
    candidates = chunks[all_rows(chunks)[:, None], places].flatten(1)
    unbounded = limits.unbounded
    totals = _sum_exp(device.blocks(scaled)) if unbounded.any() else None
    cut = cutoffs(device.sort(candidates), limits, totals)
    # Equal to the bound would be a tie with what is outside; -inf is nothing to tie with.
    known = (bound < cut.final) & (unbounded | (bound < cut.before_top_p))
    found = cut.found & known | (bound == -torch.inf)
    drawn = search(_kept(candidates, cut.final), uniforms)[:, None]
    tokens = places.gather(1, drawn // CHUNK) * CHUNK + drawn % CHUNK
    return tokens[:, 0], found


def _kept(scaled: torch.Tensor, cutoff: torch.Tensor) -> torch.Tensor:
    return scaled.masked_fill(scaled < cutoff[:, None], -torch.inf).exp_()


def _sum_exp(blocks: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.stack([block.exp().sum(-1) for block in blocks]).double().sum(0)
