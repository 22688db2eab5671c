"""The log probabilities that a request asked to see."""

from collections.abc import Iterable, Sequence

import torch

from folovllm.outputs import Logprob
from folovllm.sampling.device import DeviceOps


def tabulate(
    logits: torch.Tensor, tokens: torch.Tensor, count: int, device: DeviceOps
) -> torch.Tensor:
    """Return what there is to say of the chosen tokens and of the most likely ones.

    A token's rank is the number of tokens at least as likely, as in vLLM
    (`vllm/v1/sample/ops/logprobs.py`): among ties, the last place.

    Args:
        logits: [rows, vocab] as the model gave them, of any floating-point type.
        tokens: [rows], the chosen ids.
        count: how many of the most likely tokens.
        device: the operations of the tensors' device.

    Returns:
        [rows, 2 + 2 * count] in float64: the chosen token's log probability and rank, the log
        probabilities of the most likely tokens, their ids.
    """
    chosen = logits.gather(1, tokens[:, None])
    peaks = logits.amax(-1, keepdim=True).double()
    log_sums, rank = _measure(device.blocks(logits), peaks.float(), chosen)
    columns = [chosen - peaks - log_sums, rank]
    if count:
        values, ids = device.top(logits, count)
        columns += [values - peaks - log_sums, ids]
    return torch.cat(columns, 1)


def _measure(
    blocks: Iterable[torch.Tensor], peaks: torch.Tensor, chosen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log(sum(exp(logits - peaks))) and how many are at least `chosen`: [rows, 1].

    The logits come in blocks of columns.
    """
    sums, rank = torch.zeros_like(peaks, dtype=torch.float64), torch.zeros_like(peaks)
    for block in blocks:
        sums += (block - peaks).exp_().sum(-1, keepdim=True)
        rank += (block >= chosen).sum(-1, keepdim=True)
    return sums.log(), rank


def to_dicts(
    tokens: Iterable[int], table: Iterable[Sequence[float]], count: int
) -> list[dict[int, Logprob]]:
    """Return the rows of `tabulate` as vLLM hands them out.

    The chosen token comes first, then the others, most likely first, ranked by their place. The
    chosen one is there once, and where it is one of the most likely its rank is that place.

    Args:
        tokens: the chosen ids.
        table: rows as `tabulate` gives them.
        count: what `tabulate` was called with.
    """
    dicts = []
    for token, row in zip(tokens, table, strict=True):
        entries = {token: Logprob(row[0], int(row[1]))}
        likely = zip(row[2 : 2 + count], row[2 + count :], strict=True)
        for rank, (logprob, other) in enumerate(likely, 1):
            entries[int(other)] = Logprob(logprob, rank)
        dicts.append(entries)
    return dicts
