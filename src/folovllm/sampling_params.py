"""How the tokens of a request are chosen, when they stop and how they are handed out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from enum import IntEnum
from operator import attrgetter
from typing import Any, NamedTuple

from folovllm.utils.checks import (
    check_bool,
    check_dict,
    check_float,
    check_int,
    check_strings,
    check_token_ids,
    check_type,
    refuse,
)

_MOST_OUTPUTS = 16384
"""Of one request: each is a sequence with a copy of the prompt. vLLM's limit
(`VLLM_MAX_N_SEQUENCES`)."""
_OUTPUTS = f"an integer >= 1 and <= {_MOST_OUTPUTS}"


class SamplingType(IntEnum):
    """Whether the most likely token is taken or one is drawn."""

    GREEDY = 0
    RANDOM = 1


class RequestOutputKind(IntEnum):
    """What each `RequestOutput` of a request holds, and when there is one."""

    CUMULATIVE = 0
    """After each step: all that was generated so far."""
    DELTA = 1
    """After each step: what came since the last one."""
    FINAL_ONLY = 2
    """Once, when the request is finished: all of it."""

    def __repr__(self) -> str:
        """As it is written in code: `SamplingParams` shows itself as the call that makes it."""
        return f"RequestOutputKind.{self.name}"


@dataclass(slots=True, init=False, repr=False)
class SamplingParams:
    """The sampling parameters of one request, with vLLM's names and meanings.

    Below, z is the logit of a token, p its probability after the temperature, and "seen" is
    what a penalty looks back at. The order in which they apply is vLLM's
    (`vllm/v1/sample/sampler.py`): `allowed_token_ids`, `bad_words`, `min_tokens` and
    `logit_bias`, penalties, `temperature`, `min_p`, `top_k`, `top_p`.

    Lists and dicts are copied, so that the caller may go on using theirs. An attribute that is
    set later is checked when a request is added, which then keeps a copy: what changes after
    that does not concern it. `checked_copy` is that check.

    Attributes:
        n: outputs to return for the prompt.
        best_of: outputs to generate, of which the `n` with the highest cumulative log
            probability are returned; None, in the constructor or set later, is as many as `n`
            says at any time.
        temperature: p = softmax(z / temperature); 0 is greedy: the most likely token, whatever
            `min_p`, `top_k` and `top_p` say.
        top_p: keep the fewest most likely tokens whose probabilities add up to at least this
            (nucleus sampling, Holtzman et al. 2019, arXiv:1904.09751); 1 keeps all.
        top_k: keep this many of the most likely tokens (Fan et al. 2018, arXiv:1805.04833);
            -1, or 0 in the constructor, keeps all.
        min_p: keep tokens with p >= min_p * max(p) (Nguyen et al. 2024, arXiv:2407.01082);
            0 keeps all.
        presence_penalty: z -= penalty for each token seen in the output (OpenAI's API).
        frequency_penalty: z -= penalty * count, the count being of the output (OpenAI's API).
        repetition_penalty: for each token seen in prompt or output, z /= penalty where z > 0,
            else z *= penalty (CTRL, Keskar et al. 2019, arXiv:1909.05858); 1 is off.
        stop: strings that end the output; one string in the constructor is a list of one.
        stop_token_ids: token ids that end the output.
        bad_words: words that are never generated, with these capitals, at the beginning of the
            output, behind a space or behind anything else that ends a word, in whatever tokens:
            the token that would complete one is barred. Within a longer word they may come.
        logit_bias: z += bias, by token id.
        allowed_token_ids: the only token ids that may be generated; None allows all.
        ignore_eos: go on generating after the end-of-sequence token.
        max_tokens: most tokens to generate; None is up to the model's length.
        min_tokens: tokens to generate before end-of-sequence or `stop_token_ids` may come.
        seed: seeds this request's own generator, so that its tokens repeat; None, or vLLM's
            -1 in the constructor, does not.
        logprobs: log probabilities to return at each output token: those of this many most
            likely tokens and of the chosen one; 0 is the chosen one alone, -1 the whole
            vocabulary, None nothing.
        prompt_logprobs: the same for each prompt token.
        skip_special_tokens: leave special tokens out of the text.
        spaces_between_special_tokens: put a space between special tokens that are in the text;
            it matters to a tokenizer that puts one between any two tokens only.
        include_stop_str_in_output: leave the stop string at the end of the text.
        detokenize: make text of the output at all.
        truncate_prompt_tokens: keep only this many of the prompt's last tokens; None keeps all.
        output_kind: what each `RequestOutput` holds; `LLM.generate` takes the final one alone.
        use_beam_search: not supported yet.
    """

    n: int
    best_of: int  # a `_BestOf`, set below
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    stop: list[str]
    stop_token_ids: list[int]
    bad_words: list[str]
    logit_bias: dict[int, float] | None
    allowed_token_ids: list[int] | None
    ignore_eos: bool
    max_tokens: int | None
    min_tokens: int
    seed: int | None
    logprobs: int | None
    prompt_logprobs: int | None
    skip_special_tokens: bool
    spaces_between_special_tokens: bool
    include_stop_str_in_output: bool
    detokenize: bool
    truncate_prompt_tokens: int | None
    output_kind: RequestOutputKind
    use_beam_search: bool

    # Written out, where a dataclass would generate it, because it takes more types than it
    # keeps: what is None or one string here is a list afterwards, for mypy too. By keyword
    # only, because the order of vLLM's own fields is another and has changed.
    def __init__(
        self,
        *,
        n: int = 1,
        best_of: int | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = -1,
        min_p: float = 0.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Iterable[str] | None = None,
        stop_token_ids: Iterable[int] | None = None,
        bad_words: Iterable[str] | None = None,
        logit_bias: Mapping[int, float] | None = None,
        allowed_token_ids: Iterable[int] | None = None,
        ignore_eos: bool = False,
        max_tokens: int | None = 16,
        min_tokens: int = 0,
        seed: int | None = None,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        include_stop_str_in_output: bool = False,
        detokenize: bool = True,
        truncate_prompt_tokens: int | None = None,
        output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE,
        use_beam_search: bool = False,
    ) -> None:
        """Check and keep the parameters; the class describes them.

        Raises:
            ValueError: a value is of the wrong type, out of range, or contradicts another;
                the message names the field, the value and what is accepted.
            NotImplementedError: `use_beam_search` is True.
        """
        self.n = check_int("n", n, 1, _MOST_OUTPUTS, accepted=_OUTPUTS)
        self.best_of = _check_best_of(best_of, self.n)
        self.temperature = check_float("temperature", temperature, 0)
        self.top_p = check_float("top_p", top_p, 0, 1, open_low=True)
        self.top_k = _check_top_k(top_k)
        self.min_p = check_float("min_p", min_p, 0, 1)
        self.presence_penalty = check_float("presence_penalty", presence_penalty, -2, 2)
        self.frequency_penalty = check_float("frequency_penalty", frequency_penalty, -2, 2)
        self.repetition_penalty = check_float(
            "repetition_penalty", repetition_penalty, 0, open_low=True
        )
        self.stop = _check_stop(stop)
        self.stop_token_ids = check_token_ids(
            "stop_token_ids", () if stop_token_ids is None else stop_token_ids
        )
        self.bad_words = check_strings("bad_words", () if bad_words is None else bad_words)
        self.logit_bias = None if logit_bias is None else _check_logit_bias(logit_bias)
        self.allowed_token_ids = (
            None if allowed_token_ids is None else _check_allowed(allowed_token_ids)
        )
        self.ignore_eos = check_bool("ignore_eos", ignore_eos)
        self.max_tokens = None if max_tokens is None else check_int("max_tokens", max_tokens, 1)
        self.min_tokens = _check_min_tokens(min_tokens, self.max_tokens)
        self.seed = None if seed is None else _check_seed(seed)
        self.logprobs = _check_logprobs("logprobs", logprobs)
        self.prompt_logprobs = _check_logprobs("prompt_logprobs", prompt_logprobs)
        self.skip_special_tokens = check_bool("skip_special_tokens", skip_special_tokens)
        self.spaces_between_special_tokens = check_bool(
            "spaces_between_special_tokens", spaces_between_special_tokens
        )
        self.include_stop_str_in_output = check_bool(
            "include_stop_str_in_output", include_stop_str_in_output
        )
        self.detokenize = check_bool("detokenize", detokenize)
        self.truncate_prompt_tokens = (
            None
            if truncate_prompt_tokens is None
            else check_int("truncate_prompt_tokens", truncate_prompt_tokens, 1)
        )
        check_type("output_kind", output_kind, RequestOutputKind, "a RequestOutputKind")
        self.output_kind = output_kind
        self.use_beam_search = check_bool("use_beam_search", use_beam_search)
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.use_beam_search:
            raise NotImplementedError("use_beam_search=True: beam search is not supported yet")
        if self.temperature == 0 and self.best_of > self.n:
            refuse(
                "best_of",
                self.best_of,
                f"{self.n} (n) with temperature=0: greedy candidates are all the same",
            )
        if self.stop and not self.detokenize:
            refuse("stop", self.stop, "empty with detokenize=False: there is no text to search")

    def checked_copy(self, **changes: Any) -> "SamplingParams":
        """Return a copy that shares nothing, its values checked as the constructor does.

        Unlike `dataclasses.replace`, it is a plain `SamplingParams` and says what is missing.

        Args:
            **changes: values that differ in the copy.

        Raises:
            ValueError: a value, which may have been set without a check, is wrong.
            NotImplementedError: `use_beam_search` is True.
        """
        try:
            values = dict(zip(_NAMES, _read_all(self), strict=True))
        except AttributeError as error:
            raise ValueError(f"sampling_params must have all of its fields: {error}") from error
        return SamplingParams(**{**values, **changes})

    @property
    def sampling_type(self) -> SamplingType:
        """GREEDY exactly when the temperature is 0."""
        return SamplingType.GREEDY if self.temperature == 0 else SamplingType.RANDOM

    def __repr__(self) -> str:
        """Show what differs from the defaults, as the call that makes it."""
        changed = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(_DEFAULTS, field.name)
            and not (field.name == "best_of" and self.best_of == self.n)
        ]
        return f"SamplingParams({', '.join(changed)})"


class _AsManyAsN(int):
    """A `best_of` that nobody gave: the number that `n` is, and None to the constructor.

    So `dataclasses.replace(params, n=3)`, which hands the constructor every attribute as it
    reads, and `SamplingParams(**{**asdict(params), "n": 3})` don't mistake it for a wish.
    """

    __slots__ = ()


class _BestOf:
    """The attribute `best_of`: kept as it was given, and read as `n` where it was not."""

    def __init__(self, slot: Any) -> None:
        self._slot = slot

    def __get__(self, params: SamplingParams | None, owner: type | None = None) -> Any:
        if params is None:
            return self
        given = self._slot.__get__(params)
        if given is not None:
            return given
        n: object = params.n  # set without a check, it is reported under its own name
        return _AsManyAsN(int.__index__(n)) if isinstance(n, int) else n

    def __set__(self, params: SamplingParams, value: object) -> None:
        self._slot.__set__(params, None if isinstance(value, _AsManyAsN) else value)


# A property cannot stand in the class: a dataclass with slots would take it for a default.
setattr(SamplingParams, "best_of", _BestOf(vars(SamplingParams)["best_of"]))  # noqa: B010


def _check_best_of(best_of: int | None, n: int) -> Any:
    if best_of is None or isinstance(best_of, _AsManyAsN):
        return None
    accepted = f"None or an integer >= {n} (n) and <= {_MOST_OUTPUTS}"
    return check_int("best_of", best_of, n, _MOST_OUTPUTS, accepted=accepted)


def _check_top_k(top_k: int) -> int:
    accepted = "-1 or 0 (off) or an integer >= 1"
    return check_int("top_k", top_k, -1, accepted=accepted) or -1


def _check_stop(stop: str | Iterable[str] | None) -> list[str]:
    if stop is None:
        return []
    return check_strings("stop", [stop] if isinstance(stop, str) else stop)


def _check_logit_bias(logit_bias: Mapping[int, float]) -> dict[int, float]:
    given = check_dict("logit_bias", logit_bias, "a dict of token ids and biases")
    # The range is that of OpenAI's API, to which vLLM's server clamps.
    return {
        check_int("logit_bias key", token_id, 0): check_float(
            f"logit_bias[{token_id}]", bias, -100, 100
        )
        for token_id, bias in given.items()
    }


def _check_allowed(allowed_token_ids: Iterable[int]) -> list[int]:
    ids = check_token_ids("allowed_token_ids", allowed_token_ids)
    if not ids:
        refuse("allowed_token_ids", ids, "None or a list of at least one token id")
    return ids


def _check_min_tokens(min_tokens: int, max_tokens: int | None) -> int:
    limit = "" if max_tokens is None else f" and <= {max_tokens} (max_tokens)"
    return check_int("min_tokens", min_tokens, 0, max_tokens, accepted=f"an integer >= 0{limit}")


def _check_seed(seed: int) -> int | None:
    # 64 bits are what a torch.Generator takes, and what vLLM's server lets through.
    checked = check_int("seed", seed, -(2**63), 2**63 - 1)
    return None if checked == -1 else checked


def _check_logprobs(field: str, count: int | None) -> int | None:
    if count is None:
        return None
    return check_int(field, count, -1, accepted="None, -1 (the vocabulary) or an integer >= 0")


class BadWords(NamedTuple):
    """Which tokens would complete a bad word, as a graph in token ids; see `text.bad_words`.

    A state says how much of a word the output ends with. State 0, nothing of any, is always
    among those that the output is in.

    Attributes:
        steps: a state, a token, and the state that the token leads to from there.
        ends: a state, and a token that completes a word from there: it is barred.
        silent: tokens without a text, which leave the states as they are.
    """

    steps: tuple[tuple[int, int, int], ...] = ()
    ends: tuple[tuple[int, int], ...] = ()
    silent: tuple[int, ...] = ()


NO_BAD_WORDS = BadWords()


_MOST = 2**31 - 1  # no limit to any vocabulary or length, and a number that JSON readers take


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """How the tokens of a request are chosen, in numbers and token ids alone.

    Made from `SamplingParams` once, when the request is: nothing of it changes afterwards, and
    it travels to the worker in a plan.

    Attributes:
        temperature: 0 is greedy; this and the next as in `SamplingParams`.
        logprobs: how many of the most likely tokens to report at each output token, -1 for the
            vocabulary; 0 also where candidates are ranked by the probability of what was
            chosen; None for nothing.
        prompt_logprobs: the same for the tokens of the prompt.
        bad_words: which tokens would complete a bad word.
        min_tokens: before this many tokens none of `end_token_ids` may come.
        end_token_ids: the ids that end the output, those of the model and of the request.
        logit_bias: pairs of a token id and what is added to its logit.
        allowed_token_ids: the only ids that may be chosen; None allows all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    bad_words: BadWords = NO_BAD_WORDS
    min_tokens: int = 0
    end_token_ids: tuple[int, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls,
        params: SamplingParams,
        bad_words: BadWords = NO_BAD_WORDS,
        eos_token_ids: Iterable[int] = (),
    ) -> "SamplingSpec":
        """Take over what concerns the choice of tokens.

        Args:
            params: of the request.
            bad_words: what `params.bad_words` are in token ids.
            eos_token_ids: the model's own ids that end an output. `min_tokens` holds them back
                with `ignore_eos` too, as in vLLM
                (`vllm/v1/sample/logits_processor/builtin.py`).
        """
        # Candidates are ranked by the probability of what was chosen.
        ranked = 0 if params.best_of > params.n else None
        allowed = params.allowed_token_ids
        return cls(
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=min(params.top_k, _MOST),
            min_p=params.min_p,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            repetition_penalty=params.repetition_penalty,
            seed=params.seed,
            logprobs=ranked if params.logprobs is None else params.logprobs,
            prompt_logprobs=params.prompt_logprobs,
            bad_words=bad_words,
            min_tokens=min(params.min_tokens, _MOST),
            end_token_ids=tuple(sorted({*eos_token_ids, *params.stop_token_ids})),
            logit_bias=tuple((params.logit_bias or {}).items()),
            allowed_token_ids=None if allowed is None else tuple(allowed),
        )


_NAMES = tuple(field.name for field in fields(SamplingParams))
_read_all = attrgetter(*_NAMES)
_DEFAULTS = SamplingParams()
