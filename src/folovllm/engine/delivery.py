"""The last part of a step: its outputs, to whoever asked for them."""

import time

from folovllm.core.scheduler import Scheduler
from folovllm.engine.output_processor import OutputProcessor, give_up
from folovllm.engine.router import DeliveryError, Router
from folovllm.engine.stats import EngineStats
from folovllm.outputs import RequestOutput
from folovllm.request import Request


class Delivery:
    """Hands out what the requests of a step came to, each apart from the others.

    Args:
        outputs: makes the outputs.
        router: knows who asked.
        scheduler: is told of requests that end here.
        stats: counts them.

    Attributes:
        interruption: Ctrl-C or the like that came while a callback ran; whoever steps raises it
            once the step is over.
    """

    def __init__(
        self, outputs: OutputProcessor, router: Router, scheduler: Scheduler, stats: EngineStats
    ) -> None:
        """Keep the parts."""
        self._outputs = outputs
        self._router = router
        self._scheduler = scheduler
        self._stats = stats
        self.interruption: BaseException | None = None

    def hand_out(self, failed: list[Request]) -> list[RequestOutput]:
        """Give each output to whoever asked; return those of requests that nobody aborted.

        Args:
            failed: requests that the step ended by an error.
        """
        handed = []
        for request, output in self._outputs.make_outputs(failed):
            if output.finished:
                self._end(request)
            try:
                is_wanted = self._router.deliver(request, output)
            except DeliveryError as error:
                self._note(error.__cause__)
                handed.append(self._give_up(request, output, error.__cause__))
                continue
            if is_wanted:
                handed.append(output)
        return handed

    def end_aborted(self, request: Request) -> None:
        """End a request without another output, if it is unfinished."""
        self._router.close(request.request_id, request)
        if not request.is_finished():
            request.metrics.finished_time = time.perf_counter()
            self._end(request)

    def _note(self, cause: BaseException | None) -> None:
        if not isinstance(cause, Exception):
            self.interruption = cause

    def _give_up(
        self, request: Request, output: RequestOutput, cause: BaseException | None
    ) -> RequestOutput:
        """End a request whose outputs nobody takes; return its last one, for who steps."""
        give_up(request, "its deliver callback raised", cause)
        if output.finished:
            return output
        output = self._outputs.make_failure(request)
        self._end(request)
        return output

    def _end(self, request: Request) -> None:
        """Count a request that is over, also where the scheduler does not know yet."""
        self._scheduler.abort_request(request)
        self._stats.record_finished(request.metrics, request.error)
