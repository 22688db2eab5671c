"""The log probabilities that a request asked to see."""

from collections.abc import Iterable, Sequence

import torch

from folovllm.outputs import Logprob


def tabulate(logits: torch.Tensor, tokens: torch.Tensor, count: int) -> torch.Tensor:
    """Return what there is to say of the chosen tokens and of the most likely ones.

    A token's rank is the number of tokens at least as likely, as in vLLM
    (`vllm/v1/sample/ops/logprobs.py`): among ties, the last place.

    Args:
        logits: [rows, vocab] as the model gave them, of any floating-point type.
        tokens: [rows], the chosen ids.
        count: how many of the most likely tokens.

    Returns:
        [rows, 2 + 2 * count] in float64: the chosen token's log probability and rank, the log
        probabilities of the most likely tokens, their ids.
    """
    # `float()` first: asked for another type, log_softmax on a CPU converts one row at a time.
    logprobs = logits.float().log_softmax(-1)
    chosen = logprobs.gather(1, tokens[:, None])
    columns = [chosen, (logprobs >= chosen).sum(-1, keepdim=True)]
    if count:
        columns += logprobs.topk(count)
    return torch.cat([column.double() for column in columns], 1)


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
