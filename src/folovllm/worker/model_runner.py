"""Executes a step: moves cache blocks, runs the model, samples."""

import numpy as np
import torch

from folovllm.attention.backend import AttentionBackend, AttentionStep
from folovllm.attention.batch import Batch
from folovllm.core.plan import StepPlan, StepResult
from folovllm.models.hf_adapter import PagedModel
from folovllm.sampling.sampler import Sampler
from folovllm.utils.transfer import send
from folovllm.worker.batch import LogitRows, find_logit_rows, make_batch
from folovllm.worker.block_tables import BlockTables
from folovllm.worker.cuda_graphs import DecodeGraphs
from folovllm.worker.kv_cache import KVCache


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
        self._tables = BlockTables()

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Execute one step: forget and meet sequences, move blocks, run the model, sample.

        Raises:
            NotImplementedError: the plan has drafts.
        """
        # In this order, since a finished id may be new again in the same plan.
        self.sampler.forget(plan.finished)
        self._tables.forget(plan.finished)
        self.sampler.meet(plan.new)
        # Before any copy, which may read or write the blocks that are cleared.
        self.cache.clear(plan.clear)
        self.cache.swap_out(plan.swap_out)
        self.cache.copy(plan.copies)
        self.cache.swap_in(plan.swap_in)
        if not plan.scheduled:
            return StepResult([])
        rows = find_logit_rows(plan.scheduled)
        batch = make_batch(plan.scheduled, self._tables, self.block_size)
        return self._sample(self._run(batch, rows), rows)

    def _run(self, batch: Batch, rows: LogitRows) -> torch.Tensor:
        """Run the model; the logits of the tokens in `rows`."""
        # Graphs compute the logits of all tokens, in the order of the batch.
        is_decode = len(rows.tokens) == len(batch.token_ids) and not rows.prompts
        if self.graphs is not None and is_decode:
            logits = self.graphs.run(batch)
            if logits is not None:
                return logits
        arrays = [batch.token_ids, batch.positions, np.array(rows.tokens, np.int64)]
        token_ids, positions, logit_rows = send(arrays, self.model.device)
        metadata = self.backend.build(batch, self.model.device)
        step = AttentionStep(self.backend, self.cache.layers, metadata)
        return self.model.forward(token_ids, positions, step, logit_rows)

    def _sample(self, logits: torch.Tensor, rows: LogitRows) -> StepResult:
        prompt_logprobs = {
            part.seq_id: self.sampler.prompt_logprobs(
                logits[part.rows.start : part.rows.stop], part.seq_id, part.targets
            )
            for part in rows.prompts
        }
        if not rows.seq_ids:
            return StepResult([], prompt_logprobs=prompt_logprobs)
        count = rows.sampled[-1] + 1
        logits = logits[:count]
        if count < len(rows.sampled):  # sequences that fork at the end of their prompt share a row
            logits = logits[send([np.array(rows.sampled)], logits.device)[0]]
        sampled = self.sampler.sample(logits, rows.seq_ids)
        logprobs = None
        if sampled.logprobs is not None:
            logprobs = [None if one is None else [one] for one in sampled.logprobs]
        failed = {rows.seq_ids[row]: why for row, why in sampled.failed.items()}
        return StepResult([[t] for t in sampled.token_ids], logprobs, prompt_logprobs, failed)
