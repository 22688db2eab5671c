"""Tensor functions that choose one token a row: pure, vectorised, without a host-device sync.

Rows are independent of each other: what comes out for one does not depend on which others there
are. The vocabulary is looked at in chunks of `CHUNK` neighbouring tokens: reducing each chunk
reads the logits once, and what is left to do is small.
"""

import torch

CHUNK = 64
"""Tokens a chunk."""


def padded(size: int) -> int:
    """Return `size` rounded up to whole chunks."""
    return -(-size // CHUNK) * CHUNK


def scale(
    logits: torch.Tensor, peaks: torch.Tensor, factors: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Return (logits - peaks) * factors in float32: at most 0, so that no factor overflows.

    Args:
        logits: [rows, vocab], of any floating-point type.
        peaks: [rows], the greatest of each row.
        factors: [rows] in float32, 1 / temperature, finite.
        out: [rows, padded(vocab)] in float32; what is beyond the vocabulary becomes -inf.

    Returns:
        `out`.
    """
    vocab = logits.shape[1]
    used = out[:, :vocab]
    used.copy_(logits).sub_(peaks.float()[:, None]).mul_(factors[:, None])
    out[:, vocab:] = -torch.inf
    return out


def search(
    weights: torch.Tensor,
    shares: torch.Tensor,
    totals: torch.Tensor | None = None,
    *,
    inclusive: bool = False,
) -> torch.Tensor:
    """Return where the running sum of each row passes a share of its total: the inverse CDF.

    With uniform numbers as shares it draws from the weights. A place of weight 0 is never
    returned for a share of the row's own sum. Sums are float32 within a chunk and float64 over the
    chunks, so that the error does not grow with the vocabulary, at the cost of one pass.

    Args:
        weights: [rows, n] in float32, none negative, n in whole chunks.
        shares: [rows] in float64, from 0 to less than 1.
        totals: [rows] in float64, what the shares are of; None for the sums of the rows.
        inclusive: whether reaching the share is enough to have passed it.

    Returns:
        [rows] places, each below n whatever the weights are.
    """
    chunks = weights.unflatten(1, (-1, CHUNK))
    ends = chunks.sum(-1).cumsum(-1, dtype=torch.float64)
    chunk, within = _passed(ends, shares * (ends[:, -1] if totals is None else totals), inclusive)
    inner = chunks[all_rows(weights), chunk].cumsum(-1, dtype=torch.float64)
    # A share again: the chunk's sum in float64 is not quite the one in float32 that led here.
    place, _ = _passed(inner, within * inner[:, -1], inclusive)
    return chunk * CHUNK + place


def _passed(
    sums: torch.Tensor, targets: torch.Tensor, inclusive: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first place where `sums` passes the target, and how much of its step that is."""
    # A float64 below 1 times the total, rounded, is below the total: there is such a place. Only
    # for NaN and for a share of a greater total there is none.
    targets = targets[:, None]
    places = torch.searchsorted(sums, targets, right=not inclusive)
    places.clamp_(max=sums.shape[1] - 1)
    before = sums.gather(1, (places - 1).clamp(min=0)).masked_fill(places == 0, 0)
    share = (targets - before) / (sums.gather(1, places) - before)
    return places[:, 0], share[:, 0]


def all_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return the numbers of a tensor's rows."""
    return torch.arange(len(tensor), device=tensor.device)


def bar(logits: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor) -> None:
    """Make the tokens at (rows, ids) impossible, in place."""
    logits[rows, ids] = -torch.inf


def allow_only(
    logits: torch.Tensor, limited: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor
) -> None:
    """Make all tokens of the `limited` rows impossible but those at (rows, ids), in place."""
    kept = logits[rows, ids]
    logits[limited] = -torch.inf
    logits[rows, ids] = kept


def penalize(
    logits: torch.Tensor,
    rows: torch.Tensor,
    ids: torch.Tensor,
    counts: torch.Tensor,
    penalties: torch.Tensor,
) -> None:
    """Apply the repetition, then the frequency and presence penalties, in place.

    As in `vllm/model_executor/layers/utils.py`, but of the tokens that were seen alone.

    Args:
        logits: [rows, vocab] in float32.
        rows: [n], where each token was seen.
        ids: [n], the token, once a row.
        counts: [n], how often it is in the output, 0 when in the prompt only.
        penalties: [3, n] in float64: repetition, frequency and presence.
    """
    repetition, frequency, presence = penalties
    seen = logits[rows, ids].double()
    seen = torch.where(seen > 0, seen / repetition, seen * repetition)
    seen -= frequency * counts + presence * (counts > 0)
    # A tiny repetition penalty makes a logit huge, which is no fault of the model.
    logits[rows, ids] = seen.clamp(max=torch.finfo(torch.float32).max).float()
