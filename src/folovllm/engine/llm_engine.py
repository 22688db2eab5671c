"""The engine: requests in, outputs out, one step at a time."""

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING, Any

from folovllm.config import EngineConfig
from folovllm.core.plan import SchedulerOutput
from folovllm.engine.assemble import build_parts
from folovllm.engine.failures import explain_failure, is_fatal
from folovllm.engine.output_processor import OutputProcessor
from folovllm.engine.stats import EngineStats, SchedulerState
from folovllm.errors import EngineDeadError
from folovllm.outputs import RequestOutput
from folovllm.request import SequenceStatus
from folovllm.sampling_params import SamplingParams
from folovllm.text.input_processor import PromptType

if TYPE_CHECKING:
    import torch

    from folovllm.worker.model_runner import StepResult

logger = logging.getLogger(__name__)


class LLMEngine:
    """Runs many requests together.

    One thread calls `step` again and again. Any thread may add and abort requests meanwhile: the
    model runs without the lock that they take.

    Args:
        config: everything that can be set.
        device: where to run; None for CUDA where there is one, else the CPU.

    Raises:
        ModelLoadError: the model cannot be loaded, or not be served.
        ConfigError: there is no room for its cache, or the device cannot do what was asked for.

    Attributes:
        config: as given, with the block size that the attention backend took.
        load_seconds: what each part of becoming ready took.
    """

    def __init__(self, config: EngineConfig, device: "str | torch.device | None" = None) -> None:
        """Load the model and take the memory for its cache."""
        parts = build_parts(config, device)
        self.config = copy(config)  # the caller's own may configure another engine
        self.config.cache_config = config.cache_config.model_copy(
            update={"block_size": parts.runner.block_size}
        )
        self.load_seconds = parts.load_seconds
        self.tokenizer = parts.tokenizer
        self.generation_config = parts.generation_config
        self.runner = parts.runner
        self.input_processor = parts.input_processor
        self.output_processor = OutputProcessor(parts.tokenizer)
        self.cache_manager = parts.cache_manager
        self.scheduler = parts.scheduler
        self._stats = EngineStats()
        self._lock = threading.RLock()  # of all that is told of requests
        self._changing = False
        self._to_abort: list[str] = []  # while that was being changed
        self._step_lock = threading.Lock()  # of the runner
        self._executing = False
        self._to_forget: list[str] = []  # ended while the model ran
        self._dead: str | None = None

    def add_request(
        self,
        request_id: str,
        prompt: PromptType,
        params: SamplingParams,
        *,
        arrival_time: float | None = None,
        priority: int = 0,
        add_special_tokens: bool = True,
    ) -> None:
        """Queue a request.

        Args:
            request_id: what its outputs are to be called; that of no unfinished request.
            prompt: text, token ids, or one of vLLM's dicts with either.
            params: how to sample.
            arrival_time: `time.time()` when it came; None is now.
            priority: under the policy "priority", a lower value runs earlier.
            add_special_tokens: False for a text that has them already.

        Raises:
            ValueError: it can never be served; the message says why, and nothing was queued.
            EngineDeadError: the engine cannot go on.
        """
        request = self.input_processor.process(
            request_id,
            prompt,
            params,
            arrival_time=arrival_time,
            priority=priority,
            add_special_tokens=add_special_tokens,
        )
        with self._change():
            self._check_alive()
            self.scheduler.add_request(request)
            self.output_processor.add_request(request)

    def abort_request(self, request_id: str | Iterable[str]) -> None:
        """End requests, at any moment, without another output; unknown ids are passed over."""
        ids = [request_id] if isinstance(request_id, str) else list(request_id)
        with self._lock:
            self._to_abort += ids
            # A forgotten `LLM.stream` is closed wherever Python collects it: in our own midst too.
            if not self._changing:
                with self._change():
                    pass

    def has_unfinished_requests(self) -> bool:
        """Whether a step has something to do."""
        return self.scheduler.has_unfinished_requests()

    def get_num_unfinished_requests(self) -> int:
        """Return the number of requests that are not finished."""
        return self.scheduler.get_num_unfinished_requests()

    def step(self) -> list[RequestOutput]:
        """Compute one step.

        When a step fails, the requests that were part of it end with `RequestOutput.error`, and
        the engine goes on with the others.

        Returns:
            An output for each request that moved and whose `output_kind` asks for one.

        Raises:
            EngineDeadError: the engine cannot go on.
        """
        with self._step_lock:
            started = time.perf_counter()
            plan = None
            try:
                with self._bookkeeping():
                    plan = self.scheduler.schedule()
                    self._executing = bool(plan.scheduled)
                if not plan.scheduled:
                    return []
                result = self._execute(plan)
                with self._bookkeeping():
                    if isinstance(result, Exception):
                        return self._give_up(plan, result)
                    return self._finish_step(plan, result, started)
            except BaseException:  # Ctrl-C: nobody will ask for these outputs
                if plan is not None and self._executing and self._dead is None:
                    with self._bookkeeping():
                        self._give_up(plan, "interrupted")
                raise

    def _execute(self, plan: SchedulerOutput) -> "StepResult | Exception":
        try:
            return self.runner.execute(plan)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends these requests
            return error

    def stats(self) -> dict[str, Any]:
        """Return what was done so far and how long it took, in plain types and seconds."""
        with self._change():
            return self._stats.as_dict()

    def _finish_step(
        self, plan: SchedulerOutput, result: "StepResult", started: float
    ) -> list[RequestOutput]:
        self._end_execution()
        failed = self._end_failed(plan, result.failed) if result.failed else []
        self.scheduler.update(plan, result.token_ids)
        for seq, stop in self.output_processor.add(plan, result, started=started):
            self.scheduler.finish(seq, SequenceStatus.FINISHED_STOPPED, stop)
        outputs = failed + self.output_processor.make_outputs()
        for output in outputs:
            if output.finished:
                self._end(output)
        self._record_step(plan, len(result.token_ids), started)
        return outputs

    def _record_step(self, plan: SchedulerOutput, num_generated: int, started: float) -> None:
        scheduler, cache = self.scheduler, self.cache_manager
        state = SchedulerState(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            swapped=scheduler.num_swapped,
            cache_usage=cache.usage,
            prefix_queries=cache.prefix_cache_queries,
            prefix_hits=cache.prefix_cache_hits,
            preemptions=scheduler.num_preemptions,
        )
        self._stats.record_step(plan, num_generated, time.perf_counter() - started, state)

    def _end(self, output: RequestOutput) -> None:
        """Drop what is left of a finished request."""
        self._stats.record_finished(output.metrics, output.error)
        self._to_forget.append(output.request_id)
        if not self._executing:
            self._forget()

    def _end_execution(self) -> None:
        # Not before: for what is sampled after it was forgotten, a state is made anew.
        self._executing = False
        self._forget()

    def _forget(self) -> None:
        for request_id in self._to_forget:
            self.runner.forget(request_id)
        self._to_forget.clear()

    def _abort(self, request_id: str, error: str | None = None) -> RequestOutput | None:
        self.scheduler.abort_request(request_id)
        output = self.output_processor.abort(request_id, error)
        if output is not None:
            self._end(output)
        return output

    def _end_failed(self, plan: SchedulerOutput, failed: dict[str, str]) -> list[RequestOutput]:
        """End the requests of sequences that nothing could be sampled for."""
        entries = [entry for entry in plan.scheduled if entry.seq.seq_id in failed]
        outputs = []
        for seq in (entry.seq for entry in entries if not entry.seq.is_finished()):
            reason = failed[seq.seq_id]
            logger.error("request %s: %s", seq.request_id, reason)
            outputs.append(self._abort(seq.request_id, reason))
        block_ids = [block_id for entry in entries for block_id in entry.block_ids]
        # What is not finite in the cache would spoil whoever found or got these blocks.
        self.runner.cache.clear(self.cache_manager.discard(block_ids))
        return [output for output in outputs if output is not None]

    def _give_up(self, plan: SchedulerOutput, cause: Exception | str) -> list[RequestOutput]:
        """End the requests of a step that failed."""
        self._end_execution()
        reason = explain_failure(plan, cause)
        self.scheduler.fail(plan)
        # The name of what was aborted since may be in use again.
        seqs = [entry.seq for entry in plan.scheduled if not entry.seq.is_finished()]
        request_ids = dict.fromkeys(seq.request_id for seq in seqs)
        outputs = [self._abort(request_id, reason) for request_id in request_ids]
        if isinstance(cause, Exception):
            logger.error("a step failed: %s", reason, exc_info=cause)
            if is_fatal(cause):
                self._dead = reason
        return [output for output in outputs if output is not None]

    def _check_alive(self) -> None:
        if self._dead is not None:
            raise EngineDeadError(f"the engine cannot go on since a step failed: {self._dead}")

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Hold the lock, and let this thread's own aborts wait for the end."""
        with self._lock:
            self._changing = True
            try:
                yield
            finally:
                while self._to_abort:
                    self._abort(self._to_abort.pop())
                self._changing = False

    @contextmanager
    def _bookkeeping(self) -> Iterator[None]:
        """As `_change`; when what is told of requests may be half changed, say so from then on."""
        with self._change():
            self._check_alive()
            try:
                yield
            except BaseException as error:
                self._dead = f"{type(error).__name__} while keeping its books: {error}"
                raise
