"""The engine: requests in, outputs out, one step at a time."""

import atexit
import logging
import time
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from folovllm.config import EngineConfig
from folovllm.core.plan import StepPlan, StepResult
from folovllm.engine.assemble import build_parts
from folovllm.engine.delivery import Delivery
from folovllm.engine.failures import explain_failure, is_fatal
from folovllm.engine.health import Health
from folovllm.engine.mailbox import Abort, Add, Letter, Mailbox, Wake
from folovllm.engine.output_processor import OutputProcessor
from folovllm.engine.router import Deliver, Router
from folovllm.engine.stats import EngineStats, observe
from folovllm.engine.turn import Turn
from folovllm.outputs import RequestOutput
from folovllm.request import Request
from folovllm.sampling_params import SamplingParams
from folovllm.text.input_processor import PromptType
from folovllm.utils.checks import check_names, check_type, refuse

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_PATIENCE = 0.005  # seconds


class LLMEngine:
    """Runs many requests together.

    Any thread may add and abort requests at any moment: that is a letter to the thread that
    steps, which alone writes to requests. Several threads may step: one at a time does, and
    each output goes to whoever asked for its request. It belongs to the process that made it,
    and not to those that are forked from that.

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
        self._delivery = Delivery(self._output_processor, self._router, self.scheduler, self._stats)
        self._turn = Turn()  # held by the thread that is the writer now
        self._health = Health()
        # A thread that the end of the interpreter cuts off within a step takes it down.
        atexit.register(_shut_down, weakref.ref(self))

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
            deliver: takes its outputs, besides whoever steps; see `Deliver`.

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
            ValueError: it does not fit the cache, its id is in use, or it was submitted before.
            EngineDeadError: the engine cannot go on.
        """
        self._health.check()
        check_type("request", request, Request, "a Request of the input processor")
        if deliver is not None and not callable(deliver):
            refuse("deliver", deliver, "a function, or None")
        if request.output is not None:
            refuse("request", request.request_id, "a new one: it was submitted before")
        self.scheduler.check(request)
        self._output_processor.prepare(request)
        self._router.open(request, deliver)
        self._mailbox.post(Add(request))
        if not self._health.is_good:  # meanwhile: nobody may be left to read the letter
            self._router.close(request.request_id, request)
            self._health.check()

    def abort_request(self, request_id: str | Iterable[str]) -> None:
        """End requests, at any moment, without another output; unknown ids are passed over.

        Raises:
            ValueError: an id is no string; nothing was ended.
        """
        for name in check_names("request_id", request_id):
            if (request := self._router.find(name)) is not None:
                self._withdraw(request)
        self._settle()

    def withdraw(self, request: Request) -> None:
        """End this very request, at any moment, without another output, if it is unfinished."""
        if request in self._router:
            self._withdraw(request)
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
            RuntimeError: it was called within a step, by a callback.
        """
        self._health.check()
        with self._turn.taken():
            return self._step()

    def step_until(self, is_ready: Callable[[], object]) -> None:
        """Step until something is ready: what another thread's steps bring counts as well.

        Args:
            is_ready: asked before every step, and every few milliseconds while others step.

        Raises:
            EngineDeadError: the engine cannot go on.
            RuntimeError: it was called within a step, by a callback.
        """
        self._health.check()
        while True:
            # Not forever: who steps on and on may take it again before it is our turn.
            with self._turn.within(_PATIENCE) as is_mine:
                if is_ready():
                    return
                if is_mine:
                    self._step()

    def wait_for_work(self) -> None:
        """Wait until there is something to do, or for `wake`: for a thread that only steps.

        Raises:
            EngineDeadError: the engine cannot go on.
            RuntimeError: it was called within a step, by a callback.
        """
        self._turn.refuse_twice()
        self._health.check()
        if self._router:
            return
        letter = self._mailbox.wait()  # without the lock: others may step meanwhile
        if not self._health.is_good:
            self.wake()  # the next one who waits
        with self._turn.taken(), self._health.keeping_books():
            self._read(letter)

    def wake(self) -> None:
        """End a `wait_for_work`."""
        self._mailbox.post(Wake())

    def shutdown(self) -> None:
        """End all requests without another output, and give the executor's memory back.

        It waits for the step that runs; a second call does nothing.

        Raises:
            RuntimeError: it was called within a step, by a callback.
        """
        if self._health.is_forked:
            return  # nothing in it is its own
        self._turn.refuse_twice()
        was_good = self._health.is_good
        self._health.end()
        with self._turn.taken():
            requests = self._router.close_all()
            try:
                if was_good:
                    self._open_mailbox()
                    for request in requests:
                        self.scheduler.abort_request(request)
            finally:
                self.executor.shutdown()
                self.wake()  # who waits for work

    def stats(self) -> dict[str, Any]:
        """Return what was done so far and how long it took, in plain types and seconds."""
        return self._stats.as_dict()

    def _step(self) -> list[RequestOutput]:
        started = time.perf_counter()
        with self._health.keeping_books():
            self._open_mailbox()
            plan = self.scheduler.schedule()
            result = self._execute(plan)
            failed = self._update(plan, result)
            outputs = self._delivery.hand_out(failed)
            self._record(plan, result, started)
            interruption, self._delivery.interruption = self._delivery.interruption, None
        # Ctrl-C: those whom it interrupted have ended, the engine goes on.
        for cause in (interruption, result):
            if isinstance(cause, BaseException) and not isinstance(cause, Exception):
                raise cause
        return outputs

    def _withdraw(self, request: Request) -> None:
        # In this order: whoever is interrupted in between has still ended it.
        self._mailbox.post(Abort(request))
        self._router.close(request.request_id, request)

    def _settle(self) -> None:
        """Open the mailbox if nobody steps now, so that blocks are free at once."""
        if not self._health.is_good or self._turn.is_mine():
            return
        with self._turn.within(0) as is_mine:
            if is_mine and self._health.is_good:
                with self._health.keeping_books():
                    self._open_mailbox()

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
                self._delivery.end_aborted(request)
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
                self._health.fail(reason)
        return self.scheduler.fail(plan, reason)

    def _record(self, plan: StepPlan, result: StepResult | BaseException, started: float) -> None:
        if not plan.scheduled or not isinstance(result, StepResult):
            return
        state = observe(self.scheduler, self.cache_manager)
        num_generated = sum(map(len, result.token_ids))
        self._stats.record_step(plan, num_generated, time.perf_counter() - started, state)


def _shut_down(reference: "weakref.ref[LLMEngine]") -> None:
    if (engine := reference()) is not None:
        engine.shutdown()
