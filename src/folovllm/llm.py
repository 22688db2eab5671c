"""`LLM`: the offline front door, with the interface of vLLM's."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

from folovllm.config import EngineConfig
from folovllm.engine.chat import Message, render_chat, to_conversations
from folovllm.engine.input_processor import PromptType, TokenizedPrompt
from folovllm.engine.llm_engine import LLMEngine
from folovllm.errors import ConfigError
from folovllm.outputs import RequestOutput
from folovllm.sampling_params import RequestOutputKind, SamplingParams
from folovllm.utils.checks import check_type, refuse

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_NOT_NEEDED: Mapping[str, tuple[object, ...]] = {
    "tensor_parallel_size": (1,),
    "pipeline_parallel_size": (1,),
    "data_parallel_size": (1,),
    "quantization": (None,),
    "load_format": ("auto",),
    "kv_cache_dtype": ("auto",),
    "skip_tokenizer_init": (False,),
    "cpu_offload_gb": (0,),
    "enforce_eager": (True, False),
    "disable_log_stats": (True, False),
    "disable_custom_all_reduce": (True, False),
    "limit_mm_per_prompt": (None,),
}
"""vLLM's options that there is nothing to choose for here, with the values that change nothing."""


class LLM:
    """Generates text for many prompts at once.

    Args:
        model: hub id, local folder or `.gguf` file; None takes `FOLOVLLM_MODEL`.
        device: where to run, like "cpu" or "cuda:1"; None for CUDA where there is one.
        **options: any field of `ModelConfig`, `CacheConfig` and `SchedulerConfig`. Those of
            vLLM's that mean nothing here are taken with a value that asks for nothing.

    Attributes:
        llm_engine: the engine.

    Raises:
        ConfigError: an option is unknown or its value wrong.
        ModelLoadError: the model cannot be loaded, or not be served.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        device: "str | torch.device | None" = None,
        **options: Any,
    ) -> None:
        """Load the model and make an engine of it."""
        for name in _NOT_NEEDED.keys() & options.keys():
            if (value := options.pop(name)) not in _NOT_NEEDED[name]:
                accepted = " or ".join(map(repr, _NOT_NEEDED[name]))
                raise ConfigError(f"{name}: got {value!r}; FoloVLLM does {accepted} only")
        if model is not None:
            options["model"] = model
        self._start(EngineConfig.from_options(**options), device)

    @classmethod
    def from_config(cls, config: EngineConfig, device: "str | torch.device | None" = None) -> "LLM":
        """Make one from a configuration that is there already; errors as in the constructor."""
        llm = cls.__new__(cls)
        llm._start(config, device)  # noqa: SLF001 - its own
        return llm

    def _start(self, config: EngineConfig, device: "str | torch.device | None") -> None:
        self.llm_engine = LLMEngine(config, device)
        self._num_requests = 0
        # Where outputs go, by the request: the iterators that wait for them.
        self._inboxes: dict[str, deque[RequestOutput]] = {}

    def generate(
        self,
        prompts: PromptType | Sequence[PromptType],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts.

        Args:
            prompts: one or several: text, `{"prompt": text}`, `{"prompt_token_ids": ids}` or a
                list of token ids.
            sampling_params: for all prompts, or a list with one for each; None takes
                `get_default_sampling_params()`.
            use_tqdm: show a progress bar on a terminal; or what to make one with, as tqdm is
                called.
            priority: one for each prompt, for the policy "priority": the lowest runs first.

        Returns:
            An output for each prompt, in their order. One that failed on the way has its `error`
            set.

        Raises:
            ValueError: a prompt or its parameters cannot be served; nothing was generated.
            EngineDeadError: the engine cannot go on.
        """
        tokenized = self._tokenize(prompts)
        kind = RequestOutputKind.FINAL_ONLY
        ids = self._add(tokenized, sampling_params, kind, priority)
        outputs = {}
        with _progress(use_tqdm, len(ids)) as show:
            for output in self._run(ids):
                outputs[output.request_id] = output
                show(output)
        return [outputs[request_id] for request_id in ids if request_id in outputs]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """Answer conversations, as rendered by the checkpoint's chat template.

        Args:
            messages: one conversation, a list of `{"role": ..., "content": ...}`, or a list of
                conversations.
            sampling_params: as for `generate`.
            use_tqdm: as for `generate`.
            **template_options: as for `preprocess_chat`.

        Returns:
            An output for each conversation, in their order.

        Raises:
            ValueError: as `generate` and `preprocess_chat`.
        """
        prompts = self.preprocess_chat(messages, **template_options)
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def stream(
        self,
        prompts: PromptType | Sequence[PromptType],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Iterator[RequestOutput]:
        """Complete prompts and hand out what is new as it comes.

        It begins when the first output is asked for; closing the iterator ends what is not
        finished. Other calls may be made meanwhile.

        Args:
            prompts: as for `generate`; or what `preprocess_chat` returns.
            sampling_params: as for `generate`.

        Yields:
            Outputs with the text and the tokens since the last one of the same `request_id`;
            these begin with the prompts' places: "0-...", "1-...". The last has `finished` set.

        Raises:
            ValueError: as `generate`.
        """
        tokenized = self._tokenize(prompts)
        yield from self._run(self._add(tokenized, sampling_params, RequestOutputKind.DELTA, None))

    def preprocess_chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[TokenizedPrompt]:
        """Render conversations and tokenise them: prompts for `generate` and `stream`.

        Args:
            messages: one conversation or a list of them.
            chat_template: a Jinja template in place of the checkpoint's.
            add_generation_prompt: end with the beginning of an answer.
            continue_final_message: leave the last message open, to be gone on with.
            tools: JSON schemas of functions that the model may call.
            chat_template_kwargs: more names for the template.

        Raises:
            ValueError: there is no template, a message is malformed, or the template refuses it.
        """
        texts = [
            render_chat(
                self.get_tokenizer(),
                conversation,
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                chat_template_kwargs=chat_template_kwargs,
            )
            for conversation in to_conversations(messages)
        ]
        # The template has written the special tokens already.
        return self.llm_engine.input_processor.tokenize(texts, add_special_tokens=False)

    def get_tokenizer(self) -> "PreTrainedTokenizerBase":
        """Return the model's tokenizer."""
        return self.llm_engine.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """Return the parameters that the checkpoint's generation config recommends."""
        config = self.llm_engine.generation_config
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        values = {name: getattr(config, name, None) for name in names}
        given = {name: value for name, value in values.items() if value is not None}
        if given.get("top_k") == 0:  # transformers' way to say that it is off
            del given["top_k"]
        if not config.do_sample:
            given["temperature"] = 0
        if config.max_new_tokens is not None:
            given["max_tokens"] = config.max_new_tokens
        return SamplingParams(**given)

    def stats(self) -> dict[str, Any]:
        """Return what was done so far and how long it took, in plain types and seconds."""
        return self.llm_engine.stats()

    def _tokenize(self, prompts: PromptType | Sequence[PromptType]) -> list[TokenizedPrompt]:
        return self.llm_engine.input_processor.tokenize(_as_list(prompts))

    def _add(
        self,
        prompts: list[TokenizedPrompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        kind: RequestOutputKind,
        priority: Sequence[int] | None,
    ) -> list[str]:
        """Queue all of them, or, if one cannot be served, none."""
        if params is None:
            params = self.get_default_sampling_params()
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        priorities = [0] * len(prompts) if priority is None else list(priority)
        for name, values in (("sampling_params", each), ("priority", priorities)):
            if len(values) != len(prompts):
                raise ValueError(f"{name}: got {len(values)} for {len(prompts)} prompts")
        ids: list[str] = []
        try:
            for place, prompt in enumerate(prompts):
                check_type(
                    f"sampling_params[{place}]", each[place], SamplingParams, "a SamplingParams"
                )
                request_id = f"{place}-{self._num_requests}"
                self._num_requests += 1
                self.llm_engine.add_request(
                    request_id,
                    prompt,
                    replace(each[place], output_kind=kind),
                    priority=priorities[place],
                )
                ids.append(request_id)
        except BaseException as error:  # Ctrl-C too: to add thousands takes a while
            self.llm_engine.abort_request(ids)
            if isinstance(error, ValueError) and len(prompts) > 1:
                raise ValueError(f"prompts[{place}]: {error}") from error
            raise
        return ids

    def _run(self, ids: list[str]) -> Iterator[RequestOutput]:
        """Step until these requests are finished; their outputs as they come.

        Several may run at once, each stepping for all: what comes out for another is kept for it.
        """
        engine = self.llm_engine
        inbox: deque[RequestOutput] = deque()
        self._inboxes.update(dict.fromkeys(ids, inbox))
        try:
            while inbox or any(request_id in self._inboxes for request_id in ids):
                if inbox:
                    yield inbox.popleft()
                elif engine.has_unfinished_requests():
                    self._step()
                else:
                    break  # somebody else has aborted them
        finally:
            left = [request_id for request_id in ids if request_id in self._inboxes]
            engine.abort_request(left)
            for request_id in left:
                del self._inboxes[request_id]

    def _step(self) -> None:
        for output in self.llm_engine.step():
            inbox = self._inboxes.get(output.request_id)
            if inbox is not None:
                inbox.append(output)
                if output.finished:
                    del self._inboxes[output.request_id]


def _as_list(prompts: PromptType | Sequence[PromptType]) -> list[PromptType]:
    """The prompts, whether one or several were passed; a list of integers is one prompt."""
    if isinstance(prompts, (str, Mapping, TokenizedPrompt)):
        return [prompts]
    many: Any = prompts  # nobody's types keep a user from passing something else
    if isinstance(many, bytes) or not isinstance(many, Iterable):
        refuse("prompts", many, "a prompt, or a list of prompts")
    each = list(many)
    return [each] if each and isinstance(each[0], Integral) else each


@contextmanager
def _progress(
    use_tqdm: bool | Callable[..., Any], total: int
) -> Iterator[Callable[[RequestOutput], None]]:
    """Show a bar of finished prompts with the speed so far, as vLLM's looks."""
    if not use_tqdm:
        yield lambda _output: None
        return
    if callable(use_tqdm):
        bar = use_tqdm(total=total, desc="Processed prompts")
    else:
        from tqdm.auto import tqdm

        # None: not where standard error is no terminal.
        bar = tqdm(total=total, desc="Processed prompts", dynamic_ncols=True, disable=None)
    tokens_in = tokens_out = 0
    start = time.perf_counter()

    def show(output: RequestOutput) -> None:
        nonlocal tokens_in, tokens_out
        tokens_in += len(output.prompt_token_ids)
        tokens_out += sum(len(completion.token_ids) for completion in output.outputs)
        seconds = time.perf_counter() - start
        bar.set_postfix_str(
            f"input {tokens_in / seconds:.1f} toks/s, output {tokens_out / seconds:.1f} toks/s",
            refresh=False,
        )
        bar.update(1)

    try:
        yield show
    finally:
        bar.close()
