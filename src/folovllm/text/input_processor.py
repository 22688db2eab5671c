"""From what a user passes to a `Request`, or to a `ValueError` before anything is scheduled."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from folovllm.config.settings import nearest
from folovllm.request import Request
from folovllm.sampling_params import NO_BAD_WORDS, BadWords, SamplingParams
from folovllm.text.bad_words import BadWordCompiler
from folovllm.text.text_limit import TextLimit
from folovllm.utils.checks import (
    check_dict,
    check_float,
    check_int,
    check_list,
    check_text,
    check_token_ids,
    check_type,
    refuse,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FORMS = "text, a list of token ids, {'prompt': text} or {'prompt_token_ids': ids}"
_KEYS = ("prompt", "prompt_token_ids")
_SALT = "cache_salt"


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt as the engine takes it.

    Attributes:
        text: None where the user gave token ids.
        token_ids: of the text, with its special tokens, or what the user gave.
        cache_salt: see `Request`.
    """

    text: str | None
    token_ids: list[int]
    cache_salt: str | None = None


PromptType: TypeAlias = str | Sequence[int] | Mapping[str, Any] | TokenizedPrompt
"""One prompt: text, token ids, one of vLLM's dicts with either, or a tokenized one. A dict may
have a `cache_salt`: only prompts with the same one share cache blocks."""


class InputProcessor:
    """Checks and tokenises; it has no state but the model's limits and the tokenizer."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase | None",
        *,
        max_model_len: int,
        vocab_size: int,
        eos_token_ids: Iterable[int] = (),
    ) -> None:
        """Take the limits.

        Args:
            tokenizer: None for token ids in and out alone.
            max_model_len: most tokens of a sequence, prompt and output.
            vocab_size: number of the model's embeddings.
            eos_token_ids: the model's own ids that end an output.
        """
        self.tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._text_limit = None if tokenizer is None else TextLimit(tokenizer, max_model_len)
        self._bad_words: BadWordCompiler | None = None  # reads the vocabulary: 0.1 s or so

    def process(
        self,
        request_id: str,
        prompt: PromptType,
        params: SamplingParams,
        *,
        arrival_time: float | None = None,
        priority: int = 0,
        add_special_tokens: bool = True,
    ) -> Request:
        """Make a request.

        Args:
            request_id: its name.
            prompt: see `PromptType`.
            params: checked again, for they may have changed since they were made, and copied;
                one object may serve many requests.
            arrival_time: see `Request`, 0 or later; None is now.
            priority: see `Request`.
            add_special_tokens: see `tokenize`.

        Raises:
            ValueError: something of it can't be served; the message says what and why.
            NotImplementedError: `params` ask for what is not supported yet.
        """
        check_type("sampling_params", params, SamplingParams, "a SamplingParams")
        params = params.checked_copy()
        self.check_params(params)
        [tokenized] = self.tokenize(
            [prompt],
            add_special_tokens=add_special_tokens,
            truncates=params.truncate_prompt_tokens is not None,
        )
        token_ids = tokenized.token_ids
        if params.truncate_prompt_tokens is not None:
            token_ids = token_ids[-params.truncate_prompt_tokens :]
        self._check_length(tokenized.text, token_ids)
        self._check_vocabulary("prompt_token_ids", token_ids)
        return Request(
            request_id=request_id,
            prompt=tokenized.text,
            prompt_token_ids=token_ids,
            sampling_params=params,
            arrival_time=(
                time.time()
                if arrival_time is None
                else check_float("arrival_time", arrival_time, 0)
            ),
            priority=check_int("priority", priority, -(2**63), 2**63 - 1),
            cache_salt=tokenized.cache_salt,
            bad_words=self._compile_bad_words(params),
            eos_token_ids=self._eos_token_ids,
        )

    def tokenize(
        self,
        prompts: Sequence[PromptType],
        *,
        add_special_tokens: bool = True,
        truncates: bool = False,
    ) -> list[TokenizedPrompt]:
        """Tokenise prompts, the texts among them all at once, which a fast tokenizer does faster.

        Args:
            prompts: see `PromptType`; what is tokenised already stays as it is.
            add_special_tokens: put in what the tokenizer puts in, such as a begin-of-sequence
                token; False for a chat template's text, which has them already.
            truncates: whether only the ends of prompts are kept, so that none is too long.

        Raises:
            ValueError: one is no prompt, text without a tokenizer, or a text that is too long
                for certain (`TextLimit`); a list of several names it by its place.
        """
        parsed: list[tuple[str, str | None] | TokenizedPrompt] = []
        prompts = check_list("prompts", prompts, "a list of prompts")
        for i, prompt in enumerate(prompts):
            name = f"prompts[{i}]" if len(prompts) > 1 else "prompt"
            parsed.append(self._parse(name, prompt, truncates))
        texts = [prompt[0] for prompt in parsed if isinstance(prompt, tuple)]
        ids = iter(self._encode(texts, add_special_tokens=add_special_tokens))
        return [
            TokenizedPrompt(p[0], next(ids), p[1]) if isinstance(p, tuple) else p for p in parsed
        ]

    def _compile_bad_words(self, params: SamplingParams) -> BadWords:
        if not params.bad_words or self.tokenizer is None:
            return NO_BAD_WORDS
        if self._bad_words is None:
            self._bad_words = BadWordCompiler(self.tokenizer, self._vocab_size)
        skip = params.skip_special_tokens
        return self._bad_words.compile(params.bad_words, skip_special_tokens=skip)

    def check_params(self, params: SamplingParams) -> None:
        """Refuse parameters that contradict the model or need a tokenizer that is not there.

        Raises:
            ValueError: they do.
        """
        self._check_vocabulary("stop_token_ids", params.stop_token_ids)
        self._check_vocabulary("allowed_token_ids", params.allowed_token_ids or ())
        self._check_vocabulary("logit_bias", params.logit_bias or ())
        for field in ("logprobs", "prompt_logprobs"):
            count = getattr(params, field)
            if count is not None and count > self._vocab_size:
                refuse(field, count, f"at most {self._vocab_size} (the vocabulary's size)")
        if self.tokenizer is None:
            for field in ("stop", "bad_words"):
                if value := getattr(params, field):
                    refuse(field, value, "empty: there is no tokenizer to make or read text with")

    def _parse(
        self, name: str, prompt: object, truncates: bool
    ) -> tuple[str, str | None] | TokenizedPrompt:
        """A text with its salt, still to be tokenised, or a prompt that needs no tokenizer."""
        if isinstance(prompt, TokenizedPrompt):
            return _check_tokenized(name, prompt)
        salt, accepted = None, _FORMS
        if isinstance(prompt, Mapping):
            prompt = check_dict(name, prompt, _FORMS)
            salt = _check_salt(name, prompt.get(_SALT))
            key, prompt = _only_value(name, prompt)
            name, accepted = f"{name}[{key!r}]", "a list of token ids"
            if (key == "prompt") is not isinstance(prompt, str):
                refuse(name, prompt, "text" if key == "prompt" else "a list of token ids")
        if isinstance(prompt, str):
            return self._check_text(name, prompt, truncates), salt
        token_ids = check_token_ids(name, check_list(name, prompt, accepted))
        if not token_ids:
            refuse(name, prompt, "a list of at least one token id")
        return TokenizedPrompt(None, token_ids, salt)

    def _check_text(self, name: str, text: str, truncates: bool) -> str:
        if self._text_limit is None:
            refuse(name, text, "a list of token ids: there is no tokenizer to read text with")
        plain = str.__str__(text)  # a subclass may do in its methods what it likes
        if not truncates and (why := self._text_limit.explain(plain)):
            raise ValueError(f"{name} is too long: {why}. Shorten it, or truncate_prompt_tokens")
        return check_text(name, plain, "a text that is not empty")

    def _encode(self, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
        if not texts or self.tokenizer is None:
            return []
        # Not verbose: how long is too long is our business.
        encoded = self.tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _check_length(self, text: str | None, token_ids: list[int]) -> None:
        if not token_ids:
            refuse("prompt", text, "a text of at least one token")
        if len(token_ids) >= self._max_model_len:
            raise ValueError(
                f"the prompt has {len(token_ids)} tokens and the model's max_model_len is "
                f"{self._max_model_len}, of which one must be left for the output: shorten the "
                "prompt, or keep its end alone with truncate_prompt_tokens"
            )

    def _check_vocabulary(self, field: str, token_ids: Iterable[int]) -> None:
        if max(token_ids, default=0) >= self._vocab_size:
            wrong = next(token_id for token_id in token_ids if token_id >= self._vocab_size)
            refuse(field, wrong, f"token ids below {self._vocab_size} (the vocabulary's size)")


def _check_tokenized(name: str, prompt: TokenizedPrompt) -> TokenizedPrompt:
    """Check a prompt that `tokenize` has made, or a user in its place."""
    token_ids = check_token_ids(name, prompt.token_ids)
    text = prompt.text
    if text is not None:
        text = check_text(f"{name}.text", text, "text or None", may_be_empty=True)
    return TokenizedPrompt(text, token_ids, _check_salt(name, prompt.cache_salt))


def _check_salt(name: str, salt: object) -> str | None:
    if salt is None:
        return None
    return check_text(f"{name}[{_SALT!r}]", salt, "a string that is not empty")


def _only_value(name: str, prompt: Mapping[str, Any]) -> tuple[str, object]:
    """The key and the value of a dict that has the text or the ids."""
    if unknown := [key for key in prompt if key not in (*_KEYS, _SALT)]:
        _refuse_key(name, unknown[0])
    given = [key for key in _KEYS if prompt.get(key) is not None]
    if len(given) != 1:
        got = "both" if given else "neither"
        raise ValueError(f"{name} must have either 'prompt' or 'prompt_token_ids', got {got}")
    return given[0], prompt[given[0]]


def _refuse_key(name: str, key: object) -> NoReturn:
    raise ValueError(
        f"{name} has the key {key!r}{nearest(str(key), (*_KEYS, _SALT))}; it takes 'prompt' or "
        "'prompt_token_ids', and 'cache_salt'"
    )
