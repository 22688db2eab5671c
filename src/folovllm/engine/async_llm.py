"""`AsyncLLM`: the engine for asyncio, stepped by a thread of its own."""

import asyncio
import atexit
import logging
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from folovllm.config import EngineConfig
from folovllm.engine.failures import describe
from folovllm.engine.llm_engine import LLMEngine
from folovllm.errors import EngineDeadError
from folovllm.outputs import RequestOutput
from folovllm.sampling_params import SamplingParams
from folovllm.text.input_processor import PromptType

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


class _Stream:
    """The outputs of one request on their way into the event loop that runs."""

    def __init__(self, forget: Callable[["_Stream"], None]) -> None:
        self._forget = forget  # is called where no iterator will do it
        self._loop = asyncio.get_running_loop()
        self._outputs: asyncio.Queue[RequestOutput | EngineDeadError | None] = asyncio.Queue()

    def put(self, output: RequestOutput | EngineDeadError | None) -> None:
        """Add an output, from any thread; None ends the stream.

        Raises:
            RuntimeError: the loop is closed, and nobody waits any more.
        """
        try:
            self._loop.call_soon_threadsafe(self._outputs.put_nowait, output)
        except RuntimeError:
            self._forget(self)
            raise

    async def get(self) -> RequestOutput | None:
        """Wait for the next output.

        Raises:
            EngineDeadError: the engine cannot go on.
        """
        output = await self._outputs.get()
        if isinstance(output, EngineDeadError):
            raise output
        return output


class _EngineThread(threading.Thread):
    """Steps an engine whenever there is something to do.

    It does not know the `AsyncLLM` that it works for, which can so be collected; and it ends
    before the interpreter does, which would cut off a daemon in the middle of a step.

    Attributes:
        streams: of the requests that are not finished.
        error: why no request can be served any more.
    """

    def __init__(self, engine: LLMEngine) -> None:
        super().__init__(name="folovllm engine", daemon=True)
        self.streams: set[_Stream] = set()
        self.error: EngineDeadError | None = None
        self._engine = engine
        self._stopping = False
        atexit.register(self.end)

    def run(self) -> None:
        """Step until it is to stop or the engine cannot go on, and shut the engine down."""
        engine = self._engine
        error = EngineDeadError("the engine was shut down")
        try:
            while not self._stopping:
                engine.wait_for_work()
                engine.step()
        except EngineDeadError as dead:
            error = dead
        except BaseException as fault:
            logger.exception("the engine cannot go on")
            error = EngineDeadError(f"the engine cannot go on: {describe(fault)}")
        self._end_streams(error)
        try:
            engine.shutdown()
        finally:
            atexit.unregister(self.end)

    def check(self) -> None:
        """Refuse a request that nobody would serve.

        Raises:
            EngineDeadError: the engine cannot go on.
        """
        if self.error is not None:
            raise EngineDeadError(str(self.error))
        if self._stopping:
            raise EngineDeadError("the engine was shut down")

    @property
    def is_serving(self) -> bool:
        """Whether requests can be served."""
        return self.error is None and not self._stopping

    def stop(self) -> None:
        """Let it stop after the step that runs."""
        self._stopping = True
        self._engine.wake()

    def end(self) -> None:
        """Let it stop, and wait until it has."""
        self.stop()
        if threading.current_thread() is not self:
            self.join()

    def _end_streams(self, error: EngineDeadError) -> None:
        self.error = error
        for stream in list(self.streams):
            with suppress(RuntimeError):  # its loop is closed
                stream.put(error)


class AsyncLLM:
    """Generates text for many callers of one or several event loops.

    It is shut down by `shutdown`, or once nobody refers to it any more, or at the end of the
    interpreter.

    Args:
        config: everything that can be set.
        device: where to run; None for CUDA where there is one, else the CPU.

    Attributes:
        llm_engine: the engine, which is stepped by a thread of its own.

    Raises:
        ModelLoadError: the model cannot be loaded, or not be served.
        ConfigError: there is no room for its cache, or the device cannot do what was asked for.
    """

    def __init__(self, config: EngineConfig, device: "str | torch.device | None" = None) -> None:
        """Load the model and start the thread."""
        self.llm_engine = LLMEngine(config, device)
        self._thread = _EngineThread(self.llm_engine)
        self._thread.start()
        # Without a wait, which whoever happens to collect it could not expect.
        weakref.finalize(self, self._thread.stop).atexit = False

    @property
    def is_running(self) -> bool:
        """Whether requests can be served: it was not shut down, and has not failed for good."""
        return self._thread.is_serving

    async def generate(
        self,
        request_id: str,
        prompt: PromptType,
        params: SamplingParams,
        *,
        priority: int = 0,
        add_special_tokens: bool = True,
    ) -> AsyncIterator[RequestOutput]:
        """Complete a prompt.

        The prompt is tokenised in a thread of the loop's executor, so that a long one does not
        hold up the loop. Closing the iterator, or cancelling who waits for it, aborts the
        request.

        Args:
            request_id: what its outputs are to be called; that of no unfinished request.
            prompt: text, token ids, or one of vLLM's dicts with either.
            params: how to sample; its `output_kind` says what comes when.
            priority: under the policy "priority", a lower value runs earlier.
            add_special_tokens: False for a text that has them already.

        Yields:
            The outputs; the last has `finished` set. After an `abort` there is no further one.

        Raises:
            ValueError: it can never be served; the message says why, and nothing was queued.
            EngineDeadError: the engine cannot go on.
        """
        self._thread.check()
        request = await asyncio.to_thread(
            self.llm_engine.input_processor.process,
            request_id,
            prompt,
            params,
            priority=priority,
            add_special_tokens=add_special_tokens,
        )
        streams = self._thread.streams
        stream = _Stream(streams.discard)
        streams.add(stream)
        try:
            self._thread.check()  # after it was added: whoever stops now will find the stream
            self.llm_engine.submit(request, stream.put)
            try:
                while (output := await stream.get()) is not None:
                    yield output
                    if output.finished:
                        break
            finally:
                self.llm_engine.withdraw(request)
        finally:
            streams.discard(stream)

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """End requests: their iterators end; unknown ids are passed over."""
        self.llm_engine.abort_request(request_id)

    def shutdown(self) -> None:
        """End all requests, wait for the step that runs, and give the memory back."""
        self._thread.end()
