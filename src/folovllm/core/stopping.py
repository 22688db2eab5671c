"""When a sequence ends, as far as its token ids tell; stop strings are found in the text."""

from collections.abc import Iterable
from typing import TypeAlias

from folovllm.request import Sequence, SequenceStatus

End: TypeAlias = tuple[SequenceStatus, int | str | None]
"""How a sequence ends, its status and its `stop_reason`."""


class StopRules:
    """vLLM's rules (`vllm/v1/core/sched/utils.py`), in its order.

    End-of-sequence, then stop ids, then the limits of length; before `min_tokens` are generated
    only the limits. As in vLLM, the further ids of a generation config that end a sequence act
    as `stop_token_ids` of every request, so they are given as `stop_reason` where the main one
    is not; `ignore_eos` turns all of them off.

    Args:
        longest: most tokens of a sequence, prompt and output.
        eos_token_id: the tokenizer's end-of-sequence id; None if it has none.
        extra_eos_token_ids: the generation config's ids; the main one may be among them.
    """

    def __init__(
        self,
        longest: int,
        eos_token_id: int | None = None,
        extra_eos_token_ids: Iterable[int] = (),
    ) -> None:
        """Keep the limits and the model's ids."""
        self._longest = longest
        self._eos = eos_token_id
        self._extra_eos = frozenset(extra_eos_token_ids)

    def check(self, seq: Sequence) -> End | None:
        """Return the status and `stop_reason` that a sequence's newest token ends it with.

        None if it goes on. The sequence must have an output token.
        """
        params, data = seq.sampling_params, seq.data
        num_output_tokens = len(data.output_token_ids)
        if num_output_tokens >= params.min_tokens:
            token_id = data.output_token_ids[-1]
            if not params.ignore_eos and token_id == self._eos:
                return SequenceStatus.FINISHED_STOPPED, None
            if token_id in params.stop_token_ids or (
                not params.ignore_eos and token_id in self._extra_eos
            ):
                return SequenceStatus.FINISHED_STOPPED, token_id
        if num_output_tokens == params.max_tokens or data.get_len() >= self._longest:
            return SequenceStatus.FINISHED_LENGTH_CAPPED, None
        return None
