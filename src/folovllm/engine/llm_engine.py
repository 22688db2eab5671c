"""The engine: requests in, outputs out, one step at a time."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from folovllm.config import EngineConfig
from folovllm.core.plan import StepPlan, StepResult
from folovllm.engine.assemble import build_parts
from folovllm.engine.failures import explain_failure, is_fatal
from folovllm.engine.mailbox import Abort, Add, Letter, Mailbox, Wake
from folovllm.engine.output_processor import OutputProcessor
from folovllm.engine.router import Deliver, Router
from folovllm.engine.stats import EngineStats, SchedulerState
from folovllm.errors import EngineDeadError
from folovllm.outputs import RequestOutput
from folovllm.request import Request
from folovllm.sampling_params import SamplingParams
from folovllm.text.input_processor import PromptType

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_PATIENCE = 0.005  # seconds


class LLMEngine:
    """Runs many requests together.

    Any thread may add and abort requests at any moment: that is a letter to the thread that
    steps, which alone writes to requests. Several threads may step: one at a time does, and
    each output goes to whoever asked for its request.

    Args:
        config: everything that can be set; it is not changed.
        device: where to run; None for CUDA where there is one, else the CPU.

    Raises:
        ModelLoadError: the model cannot be loaded, or not be served.
        ConfigError: there is no room for its cache, or the device cannot do what was asked for.

    Attributes:
        config: as given.
        setup: what really runs, and why.
        load_seconds: what each part of becoming ready took.
        tokenizer: the model's.
        generation_config: the checkpoint's.
        input_processor: makes requests of prompts.
        executor: executes the steps.
        scheduler: plans them.
        cache_manager: knows which blocks are whose.
    """

    def __init__(self, config: EngineConfig, device: "str | torch.device | None" = None) -> None:
        """Load the model and take the memory for its cache."""
        parts = build_parts(config, device)
        self.config = config
        self.setup = parts.setup
        self.load_seconds = parts.load_seconds
        self.tokenizer = parts.tokenizer
        self.generation_config = parts.generation_config
        self.input_processor = parts.input_processor
        self.executor = parts.executor
        self.cache_manager = parts.cache_manager
        self.scheduler = parts.scheduler
        self._output_processor = OutputProcessor(parts.tokenizer)
        self._mailbox = Mailbox()
        self._router = Router()
        self._stats = EngineStats()
        self._stepping = threading.Lock()  # held by the thread that is the writer now
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
        deliver: Deliver | None = None,
    ) -> None:
        """Queue a request.

        Args:
            request_id: what its outputs are to be called; that of no unfinished request.
            prompt: text, token ids, or one of vLLM's dicts with either.
            params: how to sample.
            arrival_time: `time.time()` when it came; None is now.
            priority: under the policy "priority", a lower value runs earlier.
            add_special_tokens: False for a text that has them already.
            deliver: takes its outputs, besides whoever steps.

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
        self.submit(request, deliver)

    def submit(self, request: Request, deliver: Deliver | None = None) -> None:
        """Queue a request that the input processor has made; see `add_request`.

        Raises:
            ValueError: it does not fit the cache, or its id is in use.
            EngineDeadError: the engine cannot go on.
        """
        self._check_alive()
        self.scheduler.check(request)
        self._output_processor.prepare(request)
        self._router.open(request, deliver)
        self._mailbox.post(Add(request))

    def abort_request(self, request_id: str | Iterable[str]) -> None:
        """End requests, at any moment, without another output; unknown ids are passed over."""
        for each in [request_id] if isinstance(request_id, str) else list(request_id):
            self._withdraw(self._router.close(each))
        self._settle()

    def withdraw(self, request: Request) -> None:
        """End this very request, at any moment, without another output, if it is unfinished."""
        self._withdraw(self._router.close(request.request_id, request))
        self._settle()

    def has_unfinished_requests(self) -> bool:
        """Whether a step has something to do."""
        return bool(self._router) or bool(self._mailbox)

    def get_num_unfinished_requests(self) -> int:
        """Return the number of requests that are not finished."""
        return len(self._router)

    def step(self) -> list[RequestOutput]:
        """Compute one step.

        When a step fails, the requests that were part of it end with `RequestOutput.error`, and
        the engine goes on with the others.

        Returns:
            An output for each request that moved and whose `output_kind` asks for one.

        Raises:
            EngineDeadError: the engine cannot go on.
        """
        with self._stepping:
            return self._step()

    def step_until(self, is_ready: Callable[[], object]) -> None:
        """Step until something is ready: what another thread's steps bring counts as well.

        Args:
            is_ready: asked before every step, and every few milliseconds while others step.

        Raises:
            EngineDeadError: the engine cannot go on.
        """
        while True:
            # Not forever: who steps on and on may take the lock again before it is our turn.
            if self._stepping.acquire(timeout=_PATIENCE):
                try:
                    if is_ready():
                        return
                    self._step()
                finally:
                    self._stepping.release()
            elif is_ready():
                return

    def wait_for_work(self) -> None:
        """Wait until there is something to do, or for `wake`: for a thread that only steps."""
        if self._router:
            return
        letter = self._mailbox.wait()  # without the lock: others may step meanwhile
        with self._stepping, self._keeping_books():
            self._read(letter)

    def wake(self) -> None:
        """End a `wait_for_work`."""
        self._mailbox.post(Wake())

    def shutdown(self) -> None:
        """End all requests without another output, and give the executor's memory back."""
        with self._stepping:
            self._dead = self._dead or "it was shut down"
            for request in self._router.close_all():
                self.scheduler.abort_request(request)
            self.executor.shutdown()

    def stats(self) -> dict[str, Any]:
        """Return what was done so far and how long it took, in plain types and seconds."""
        return self._stats.as_dict()

    def _step(self) -> list[RequestOutput]:
        started = time.perf_counter()
        with self._keeping_books():
            self._open_mailbox()
            plan = self.scheduler.schedule()
            result = self._execute(plan)
            failed = self._update(plan, result)
            outputs = self._hand_out(failed)
            self._record(plan, result, started)
        if isinstance(result, BaseException) and not isinstance(result, Exception):
            raise result  # Ctrl-C: the requests of this step have ended, the engine goes on
        return outputs

    def _withdraw(self, request: Request | None) -> None:
        if request is not None:
            self._mailbox.post(Abort(request))

    def _settle(self) -> None:
        """Open the mailbox if nobody steps now, so that blocks are free at once."""
        if self._dead is None and self._stepping.acquire(blocking=False):
            try:
                with self._keeping_books():
                    self._open_mailbox()
            finally:
                self._stepping.release()

    def _open_mailbox(self) -> None:
        for letter in self._mailbox.open():
            self._read(letter)

    def _read(self, letter: Letter) -> None:
        """Do what a letter says; a request's two letters may be read in either order."""
        match letter:
            case Add(request):
                if request in self._router:  # it may have been aborted on the way
                    self.scheduler.add_request(request)
            case Abort(request):
                if not request.is_finished():
                    self.scheduler.abort_request(request)
                    request.metrics.finished_time = time.perf_counter()
                    self._stats.record_finished(request.metrics)
            case Wake():
                pass

    def _execute(self, plan: StepPlan) -> StepResult | BaseException:
        if plan.is_empty:
            return StepResult([])
        try:
            return self.executor.execute(plan)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it ends these requests
            return error

    def _update(self, plan: StepPlan, result: StepResult | BaseException) -> list[Request]:
        """Let the scheduler know what came of a step; return the requests that it failed."""
        if isinstance(result, StepResult):
            failed = self.scheduler.update(plan, result, self._output_processor)
            for request in failed:
                logger.error("request %s: %s", request.request_id, request.error)
            return failed
        reason = explain_failure(plan, result)
        if isinstance(result, Exception):
            logger.error("a step failed: %s", reason, exc_info=result)
            if is_fatal(result):
                self._dead = reason
        return self.scheduler.fail(plan, reason)

    def _hand_out(self, failed: list[Request]) -> list[RequestOutput]:
        """Give each output to whoever asked; return those of requests that nobody aborted."""
        outputs = []
        for request, output in self._output_processor.make_outputs(failed):
            if output.finished:
                self._stats.record_finished(request.metrics, request.error)
            if self._router.deliver(request, output):
                outputs.append(output)
        return outputs

    def _record(self, plan: StepPlan, result: StepResult | BaseException, started: float) -> None:
        if not plan.scheduled or not isinstance(result, StepResult):
            return
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
        num_generated = sum(map(len, result.token_ids))
        self._stats.record_step(plan, num_generated, time.perf_counter() - started, state)

    def _check_alive(self) -> None:
        if self._dead is not None:
            raise EngineDeadError(f"the engine cannot go on: {self._dead}")

    @contextmanager
    def _keeping_books(self) -> Iterator[None]:
        """Note that the engine cannot go on if an error leaves its records half changed."""
        self._check_alive()
        try:
            yield
        except BaseException as error:
            self._dead = f"{type(error).__name__} while keeping its books: {error}"
            raise
