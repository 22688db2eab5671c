"""`LLM`: the offline front door, with the interface of vLLM's."""

import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from folovllm.config import EngineConfig
from folovllm.engine.llm_engine import LLMEngine
from folovllm.errors import ConfigError
from folovllm.outputs import RequestOutput
from folovllm.sampling_params import RequestOutputKind, SamplingParams
from folovllm.text.chat import ChatRenderer, ContentFormatOption, Tool
from folovllm.text.input_processor import PromptType, TokenizedPrompt
from folovllm.text.messages import Message, to_conversations
from folovllm.utils.checks import check_list, check_type, is_integer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_NOT_NEEDED: Mapping[str, tuple[object, ...]] = {
    "tensor_parallel_size": (1,),
    "pipeline_parallel_size": (1,),
    "data_parallel_size": (1,),
    "load_format": ("auto",),
    "kv_cache_dtype": ("auto",),
    "skip_tokenizer_init": (False,),
    "cpu_offload_gb": (0,),
    "disable_log_stats": (True, False),
    "disable_custom_all_reduce": (True, False),
    "limit_mm_per_prompt": (None,),
    "download_dir": (None,),
    "distributed_executor_backend": (None,),
}
"""vLLM's options that there is nothing to choose for here, with the values that change nothing."""

_OTHER_NAMES = {"scheduling_policy": "policy"}
"""vLLM's names for options that have another here."""


class LLM:
    """Generates text for many prompts at once; several threads may use it at the same time.

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
        for theirs, ours in _OTHER_NAMES.items():
            if theirs in options:
                options[ours] = options.pop(theirs)
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
        self._chat_renderer = ChatRenderer(self.llm_engine.tokenizer)
        self._request_numbers = itertools.count(1)

    def generate(
        self,
        prompts: PromptType | Sequence[PromptType],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        *,
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
            set; what somebody aborts meanwhile has none.

        Raises:
            ValueError: a prompt or its parameters cannot be served; nothing was generated.
            EngineDeadError: the engine cannot go on.
        """
        tokenized = self._tokenize(prompts, sampling_params)
        outputs = []
        with _progress(use_tqdm, len(tokenized)) as show:
            kind = RequestOutputKind.FINAL_ONLY
            for output in self._run(tokenized, sampling_params, kind, priority):
                outputs.append(output)
                show(output)
        return sorted(outputs, key=lambda output: int(output.request_id.partition("-")[0]))

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
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
        *,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> Generator[RequestOutput, None, None]:
        """Complete prompts and hand out what is new as it comes.

        It begins when the first output is asked for; closing the iterator ends what is not
        finished. Other calls may be made meanwhile, from other threads as well.

        Args:
            prompts: as for `generate`; or what `preprocess_chat` returns.
            sampling_params: as for `generate`.
            is_stopped: asked before every step, also while a long prompt is computed; once it
                says so, the iterator ends.

        Yields:
            Outputs with the text and the tokens since the last one of the same `request_id`;
            these begin with the prompts' places: "0-...", "1-...". The last has `finished` set.

        Raises:
            ValueError: as `generate`.
        """
        tokenized = self._tokenize(prompts, sampling_params)
        kind = RequestOutputKind.DELTA
        yield from self._run(tokenized, sampling_params, kind, is_stopped=is_stopped)

    def preprocess_chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        *,
        chat_template: str | None = None,
        chat_template_content_format: ContentFormatOption = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Tool] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[TokenizedPrompt]:
        """Render conversations and tokenise them: prompts for `generate` and `stream`.

        Args:
            messages: one conversation or a list of them. `arguments` of earlier tool calls may
                be JSON text, as OpenAI's interface has them.
            chat_template: a Jinja template in place of the checkpoint's.
            chat_template_content_format: whether the template gets a message's content as one
                text ("string") or as a list of parts ("openai"); "auto" finds out what it wants.
            add_generation_prompt: end with the beginning of an answer.
            continue_final_message: leave the last message open, to be gone on with.
            tools: JSON schemas of functions that the model may call.
            chat_template_kwargs: more names for the template.

        Raises:
            ValueError: there is no template, a message is malformed, or the template refuses it,
                fails, or takes more time or memory than a template may.
        """
        texts = [
            self._chat_renderer.render(
                conversation,
                chat_template=chat_template,
                chat_template_content_format=chat_template_content_format,
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
        """Return the parameters that the checkpoint's generation config recommends.

        As transformers reads it: without `do_sample`, greedy.
        """
        config = self.llm_engine.generation_config
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        values = {name: getattr(config, name, None) for name in names}
        given = {name: value for name, value in values.items() if value is not None}
        if not config.do_sample:
            given["temperature"] = 0
        if config.max_new_tokens is not None:
            given["max_tokens"] = config.max_new_tokens
        return SamplingParams(**given)

    def stats(self) -> dict[str, Any]:
        """Return what was done so far and how long it took, in plain types and seconds."""
        return self.llm_engine.stats()

    def _tokenize(
        self,
        prompts: PromptType | Sequence[PromptType],
        params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[TokenizedPrompt]:
        given = params if isinstance(params, (list, tuple)) else [params]
        truncates = any(getattr(one, "truncate_prompt_tokens", None) is not None for one in given)
        processor = self.llm_engine.input_processor
        return processor.tokenize(_as_list(prompts), truncates=truncates)

    def _run(
        self,
        prompts: list[TokenizedPrompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        kind: RequestOutputKind,
        priority: Sequence[int] | None = None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[RequestOutput]:
        """Queue all prompts, or none if one cannot be served, and step until all are finished.

        Several of these may go on at once, each stepping for all. However this one ends, nothing
        of it is left in the engine.
        """
        engine = self.llm_engine
        inbox: deque[RequestOutput | None] = deque()
        ids: list[str] = []
        try:
            for place, (prompt, own, rank) in enumerate(self._pair(prompts, params, priority)):
                ids.append(f"{place}-{next(self._request_numbers)}")
                with _naming(f"prompts[{place}]" if len(prompts) > 1 else ""):
                    check_type("sampling_params", own, SamplingParams, "a SamplingParams")
                    own = own.checked_copy(output_kind=kind)  # noqa: PLW2901 - not the caller's
                    engine.add_request(ids[-1], prompt, own, priority=rank, deliver=inbox.append)
            num_left = len(ids)
            while num_left:
                engine.step_until(lambda: inbox or is_stopped())
                if not inbox:  # stopped
                    break
                while inbox:
                    output = inbox.popleft()
                    num_left -= output is None or output.finished
                    if output is not None:
                        yield output
        finally:
            engine.abort_request(ids)

    def _pair(
        self,
        prompts: list[TokenizedPrompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        priority: Sequence[int] | None,
    ) -> Iterator[tuple[TokenizedPrompt, SamplingParams, int]]:
        """Each prompt with its parameters and its priority."""
        if params is None:
            params = self.get_default_sampling_params()
        if isinstance(params, SamplingParams):
            params = [params] * len(prompts)
        if priority is None:
            priority = [0] * len(prompts)
        each = check_list("sampling_params", params, "a SamplingParams, or one for each prompt")
        ranks = check_list("priority", priority, "a list with an integer for each prompt")
        for name, count in (("sampling_params", len(each)), ("priority", len(ranks))):
            if count != len(prompts):
                raise ValueError(f"{name}: got {count} for {len(prompts)} prompts")
        return zip(prompts, each, ranks, strict=True)


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Begin the message of a `ValueError` with where it is."""
    try:
        yield
    except ValueError as error:
        if where:
            raise ValueError(f"{where}: {error}") from error
        raise


def _as_list(prompts: PromptType | Sequence[PromptType]) -> list[PromptType]:
    """The prompts, whether one or several were passed; a list of integers is one prompt."""
    if isinstance(prompts, (str, Mapping, TokenizedPrompt)):
        return [prompts]
    many: Any = prompts  # nobody's types keep a user from passing something else
    each = check_list("prompts", many, "a prompt, or a list of prompts")
    return [each] if each and is_integer(each[0]) else each


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
