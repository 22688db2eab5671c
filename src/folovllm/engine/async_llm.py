"""`AsyncLLM`: the engine for asyncio, stepped by a thread of its own."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from folovllm.config import EngineConfig
from folovllm.engine.llm_engine import LLMEngine
from folovllm.errors import EngineDeadError
from folovllm.outputs import RequestOutput
from folovllm.sampling_params import SamplingParams
from folovllm.text.input_processor import PromptType

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


class _Stream:
    """The outputs of one request on their way into an event loop."""

    def __init__(self) -> None:
        """Belong to the running loop."""
        self._loop = asyncio.get_running_loop()
        self._outputs: asyncio.Queue[RequestOutput | EngineDeadError | None] = asyncio.Queue()

    def put(self, output: RequestOutput | EngineDeadError | None) -> None:
        """Add an output, from any thread; None ends the stream."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._outputs.put_nowait, output)

    async def get(self) -> RequestOutput | None:
        """Wait for the next output.

        Raises:
            EngineDeadError: the engine cannot go on.
        """
        output = await self._outputs.get()
        if isinstance(output, EngineDeadError):
            raise output
        return output


class AsyncLLM:
    """Generates text for many callers of one or several event loops.

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
        self._streams: set[_Stream] = set()
        self._stopping = False
        self._error: EngineDeadError | None = None
        self._thread = threading.Thread(target=self._run, name="folovllm engine", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether requests can be served: it was not shut down, and has not failed for good."""
        return self._error is None and not self._stopping

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
        self._check_running()
        request = await asyncio.to_thread(
            self.llm_engine.input_processor.process,
            request_id,
            prompt,
            params,
            priority=priority,
            add_special_tokens=add_special_tokens,
        )
        stream = _Stream()
        self._streams.add(stream)
        try:
            self._check_running()  # after it was added: whoever stops now will find the stream
            self.llm_engine.submit(request, stream.put)
            try:
                while (output := await stream.get()) is not None:
                    yield output
                    if output.finished:
                        break
            finally:
                self.llm_engine.withdraw(request)
        finally:
            self._streams.discard(stream)

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """End requests: their iterators end; unknown ids are passed over."""
        self.llm_engine.abort_request(request_id)

    def shutdown(self) -> None:
        """End all requests, wait for the step that runs, and give the memory back."""
        self._stopping = True
        self.llm_engine.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        """Step whenever there is something to do: the engine's thread."""
        engine = self.llm_engine
        try:
            while not self._stopping:
                engine.wait_for_work()
                engine.step()
            self._end_streams(EngineDeadError("the engine was shut down"))
            engine.shutdown()
        except EngineDeadError as error:
            self._end_streams(error)
        except BaseException as error:
            logger.exception("the engine cannot go on")
            self._end_streams(EngineDeadError(f"the engine cannot go on: {error}"))

    def _end_streams(self, error: EngineDeadError) -> None:
        self._error = error
        for stream in list(self._streams):
            stream.put(error)

    def _check_running(self) -> None:
        if self._error is not None:
            raise self._error
        if self._stopping:
            raise EngineDeadError("the engine was shut down")
