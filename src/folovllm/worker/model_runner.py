"""Executes a step: moves cache blocks, runs the model, samples."""

from dataclasses import dataclass, field

import numpy as np
import torch

from folovllm.attention.backend import AttentionBackend, AttentionStep, BatchLayout
from folovllm.core.plan import SchedulerOutput
from folovllm.models.hf_adapter import PagedModel
from folovllm.outputs import Logprob
from folovllm.sampling.sampler import Sampler
from folovllm.utils.transfer import send
from folovllm.worker.batch import Batch, make_batch
from folovllm.worker.cuda_graphs import DecodeGraphs
from folovllm.worker.kv_cache import KVCache


@dataclass(slots=True)
class StepResult:
    """What came out of a step.

    Attributes:
        token_ids: the sampled tokens, in the order of the plan's `samples`.
        logprobs: their log probabilities in the same order; None when nobody asked.
        prompt_logprobs: those of prompt tokens, for the positions of a prompt that were computed
            in this step; by sequence id.
        failed: sequences whose logits could not be sampled from, and why; by sequence id.
    """

    token_ids: list[int]
    logprobs: list[dict[int, Logprob] | None] | None = None
    prompt_logprobs: dict[str, list[dict[int, Logprob]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class ModelRunner:
    """Runs a model on what was scheduled.

    Args:
        model: the model.
        cache: its key-value cache.
        backend: how its layers attend.
        sampler: how tokens are chosen.
        block_size: tokens in a block of the cache.
        graphs: replays steps of decoding; None where all steps are run one kernel at a time.
    """

    def __init__(
        self,
        model: PagedModel,
        cache: KVCache,
        backend: AttentionBackend,
        sampler: Sampler,
        block_size: int,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        """Keep the parts."""
        self.model = model
        self.cache = cache
        self.backend = backend
        self.sampler = sampler
        self.block_size = block_size
        self.graphs = graphs

    @torch.inference_mode()
    def execute(self, plan: SchedulerOutput) -> StepResult:
        """Do what a plan says."""
        self.cache.swap_out(plan.swap_out)
        self.cache.copy(plan.copies)
        self.cache.swap_in(plan.swap_in)
        batch = make_batch(plan, self.block_size)
        logits = None if self.graphs is None else self.graphs.run(batch)
        return self._sample(plan, batch, self._run(batch) if logits is None else logits)

    def _run(self, batch: Batch) -> torch.Tensor:
        """Run the model; the logits of the batch's `logit_rows`."""
        rows = np.array(batch.logit_rows, np.int64)
        token_ids, positions, slots, logit_rows = send(
            [batch.token_ids, batch.positions, batch.slots, rows], self.model.device
        )
        layout = BatchLayout(
            batch.query_lens, batch.seq_lens, batch.block_ids, slots, self.block_size
        )
        step = AttentionStep(self.backend, self.cache.layers, self.backend.build(layout))
        return self.model.forward(token_ids, positions, step, logit_rows)

    def _sample(self, plan: SchedulerOutput, batch: Batch, logits: torch.Tensor) -> StepResult:
        prompt_logprobs = {
            part.seq.seq_id: self.sampler.prompt_logprobs(
                logits[part.rows.start : part.rows.stop],
                part.next_tokens,
                part.seq.sampling_params.prompt_logprobs or 0,
            )
            for part in batch.prompt_parts
        }
        seqs = [seq for entry in plan.scheduled for seq in entry.samples]
        if not seqs:
            return StepResult([], prompt_logprobs=prompt_logprobs)
        rows = batch.sampling_rows
        count = rows[-1] + 1
        logits = logits[:count]
        if count < len(rows):  # sequences that fork at the end of their prompt share a row
            logits = logits[send([np.array(rows)], logits.device)[0]]
        sampled = self.sampler.sample(logits, seqs)
        failed = {seqs[row].seq_id: why for row, why in sampled.failed.items()}
        return StepResult(sampled.token_ids, sampled.logprobs, prompt_logprobs, failed)

    def forget(self, request_id: str) -> None:
        """Drop what is kept for the sequences of a finished request."""
        self.sampler.forget(request_id)
