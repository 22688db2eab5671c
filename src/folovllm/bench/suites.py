"""The benchmarks of serving, from settings to measurements: what a command and a test both run."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from folovllm.bench.arrivals import EngineTarget, Target
from folovllm.bench.floor import Floor
from folovllm.bench.latency import LatencyBench, LatencyPlan
from folovllm.bench.peer import PEER, transformers_way
from folovllm.bench.results import OURS
from folovllm.bench.server import ServerTarget, server_way
from folovllm.bench.session import Session
from folovllm.bench.sweep import Goal, SweepPlan, measure_sweep
from folovllm.bench.throughput import (
    DEFAULT_CASES,
    Case,
    Way,
    check_lengths,
    measure_throughput,
    named_cases,
    our_way,
)
from folovllm.bench.workloads import (
    MAX_TOTAL,
    ConversationSource,
    RandomSource,
    Source,
    read_conversations,
    uniform,
)
from folovllm.config import BenchConfig, EngineConfig, ModelConfig
from folovllm.config.bench import (
    LatencyConfig,
    Range,
    RequestsConfig,
    SweepConfig,
    ThroughputConfig,
)
from folovllm.config.settings import Settings, nearest, public_value
from folovllm.diagnostics.limits import DeviceLimits
from folovllm.errors import ConfigError
from folovllm.llm import LLM
from folovllm.model_loader import ModelLoader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_REQUESTS = 32
INPUTS, OUTPUTS = Range(16, 256), Range(16, 128)
SWEEP_OUTPUTS = Range(16, 64)
"""Shorter than a closed batch's: a sweep runs many more requests."""


def latency(
    config: EngineConfig, options: BenchConfig, session: Session, own: LatencyConfig
) -> None:
    """Measure how long one waits for the first and for the next token.

    Raises:
        FoloVLLMError: the model cannot be loaded, or something of it cannot be measured.
    """
    _keep(session, own)
    llm = LLM.from_config(config)
    asked: dict[str, Any] = {
        "prompts": own.bench_prompts,
        "batches": own.bench_batches,
        "contexts": own.bench_contexts,
        "rounds": options.bench_rounds,
        "decode_rounds": options.bench_rounds,
    }
    plan = replace(LatencyPlan(), **{name: value for name, value in asked.items() if value})
    bench = LatencyBench(
        llm.llm_engine,
        Floor(llm.llm_engine, _limits(session)),
        seed=config.model_config.seed,
        record=session.record,
        say=session.say,
    )
    bench.run(plan)


def throughput(
    config: EngineConfig,
    options: BenchConfig,
    session: Session,
    requests: RequestsConfig,
    own: ThroughputConfig,
) -> None:
    """Measure closed batches, beside transformers and beside a server, if there is one.

    Raises:
        FoloVLLMError: a model cannot be loaded, or something of it cannot be measured.
    """
    _keep(session, requests, own)
    rounds = options.bench_rounds or 3
    server = _server(requests)
    llm = LLM.from_config(config)
    engine, tokens = llm.llm_engine, _tokens_of(llm)
    ways: dict[str, Way] = {OURS: our_way(llm)}
    cases = _cases(requests, own, tokens, config.model_config.seed, session)
    if own.bench_peer:
        setup = engine.setup
        ways[PEER] = transformers_way(config.model_config, setup.dtype, setup.device)
    if server is not None:
        ways[server.name] = server_way(server)
    _warm_up(ways, tokens)
    measure_throughput(
        cases,
        ways,
        rounds=rounds,
        floor=Floor(engine, _limits(session)),
        record=session.record,
        say=session.say,
    )


def sweep(
    config: EngineConfig,
    options: BenchConfig,  # noqa: ARG001 - a rate is measured once, over more requests
    session: Session,
    requests: RequestsConfig,
    own: SweepConfig,
) -> None:
    """Let requests arrive at an engine, or at a server, at one rate after another.

    Raises:
        FoloVLLMError: a model cannot be loaded, or something of it cannot be measured.
    """
    _keep(session, requests, own)
    goal = Goal(own.bench_ttft / 1000, own.bench_tpot / 1000)
    seed = config.model_config.seed
    plan = SweepPlan(goal, own.bench_rates or (), seconds=own.bench_seconds, seed=seed)
    server = _server(requests)
    target: Target
    if server is None:
        llm = LLM.from_config(config)
        target, tokens = EngineTarget(llm.llm_engine), _tokens_of(llm)
    else:
        target, tokens = server, _tokens_for(config.model_config)
    source = _source(requests, SWEEP_OUTPUTS, tokens, f"{seed}-sweep", session)
    check_lengths([Case("sweep", "", source, NUM_REQUESTS)], tokens.max_model_len)
    measure_sweep(target, source, plan, session.record, session.say)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """What prompts are made of.

    Attributes:
        tokenizer: makes them of text.
        vocab_size: ids are below it.
        max_model_len: most tokens of a sequence.
    """

    tokenizer: "PreTrainedTokenizerBase"
    vocab_size: int
    max_model_len: int


def _tokens_of(llm: LLM) -> _Tokens:
    setup = llm.llm_engine.setup
    return _Tokens(llm.get_tokenizer(), setup.vocab_size, setup.longest_sequence)


def _tokens_for(config: ModelConfig) -> _Tokens:
    """For a server of the same model: nothing but the tokenizer is loaded."""
    tokenizer = ModelLoader(config).load_tokenizer()
    return _Tokens(tokenizer, tokenizer.vocab_size, config.max_model_len or MAX_TOTAL)


def _source(
    requests: RequestsConfig, outputs: Range, tokens: _Tokens, seed: str, session: Session
) -> Source:
    """Where requests come from: the dataset, or else random ids of the lengths asked for."""
    path = requests.bench_dataset
    if path is None:
        lengths = uniform(
            _range(requests.bench_input_len) or INPUTS,
            _range(requests.bench_output_len) or outputs,
        )
        return RandomSource(lengths, tokens.vocab_size, seed=seed)
    if requests.bench_input_len or requests.bench_output_len:
        raise ConfigError("bench_dataset has lengths of its own: leave out the others")

    def encode(text: str) -> list[int]:
        ids: list[int] = tokens.tokenizer(text, verbose=False)["input_ids"]
        return ids

    found = read_conversations(path, encode, tokens.max_model_len)
    session.say(
        f"{path.name}: {len(found.requests)} conversations, {found.num_left_out} left out for "
        "being too short or too long"
    )
    return ConversationSource(found.requests, seed=seed)


def _cases(
    requests: RequestsConfig, own: ThroughputConfig, tokens: _Tokens, seed: int, session: Session
) -> list[Case]:
    """What closed batches there are to be."""
    lengths = (requests.bench_input_len, requests.bench_output_len)
    is_own = any((*lengths, requests.bench_dataset, own.bench_requests))
    if is_own and own.bench_workload:
        raise ConfigError(
            f"bench_workload: {own.bench_workload} has requests of its own: leave out lengths, "
            "number and dataset"
        )
    if is_own:
        source = _source(requests, OUTPUTS, tokens, f"{seed}-throughput", session)
        count = own.bench_requests or NUM_REQUESTS
        what = requests.bench_dataset.name if requests.bench_dataset else _text_of(requests)
        cases = [Case(f"{count} requests, {what}", what, source, count)]
        check_lengths(cases, tokens.max_model_len)
        return cases
    known = named_cases(tokens.vocab_size, seed)
    if own.bench_workload is None:
        return _that_fit([known[name] for name in DEFAULT_CASES], tokens.max_model_len, session)
    names = list(dict.fromkeys(name.strip() for name in own.bench_workload.split(",")))
    for name in names:
        if name not in known:
            accepted = ", ".join(known)
            raise ConfigError(
                f"bench_workload: got {name!r}; accepted are {accepted}{nearest(name, known)}"
            )
    cases = [known[name] for name in names]
    check_lengths(cases, tokens.max_model_len)
    return cases


def _that_fit(cases: list[Case], max_model_len: int, session: Session) -> list[Case]:
    """Of the cases that nobody asked for by name, those that the model takes."""
    fitting = [case for case in cases if case.source.longest(case.count) <= max_model_len]
    if not fitting:
        check_lengths(cases, max_model_len)
    for case in cases:
        if case not in fitting:
            session.say(
                f"throughput: {case.name} is left out: {case.text}; the model takes "
                f"{max_model_len} tokens a sequence"
            )
    return fitting


def _warm_up(ways: dict[str, Way], tokens: _Tokens) -> None:
    """The first run takes memory, makes threads and opens what is closed: it is not counted."""
    length = max(1, min(64, tokens.max_model_len // 2))
    lengths = uniform(Range(length, length), Range(min(8, length), min(8, length)))
    source = RandomSource(lengths, tokens.vocab_size, seed="warm-up")
    for way in ways.values():
        way(source.draw(1))


def _text_of(requests: RequestsConfig) -> str:
    inputs = _range(requests.bench_input_len) or INPUTS
    return f"{inputs} tokens in, {_range(requests.bench_output_len) or OUTPUTS} out"


def _range(text: str | None) -> Range | None:
    return None if text is None else Range.parse(text)


def _server(requests: RequestsConfig) -> ServerTarget | None:
    if requests.bench_url is None:
        return None
    key = requests.bench_api_key
    return ServerTarget(requests.bench_url, api_key=None if key is None else key.get_secret_value())


def _limits(session: Session) -> DeviceLimits:
    return DeviceLimits(**session.run.limits["start"])


def _keep(session: Session, *settings: Settings) -> None:
    """Note what was asked for, but for where the server and files are."""
    for part in settings:
        for name in sorted(part.asked_fields - {"bench_url", "bench_dataset"}):
            session.run.settings[name.removeprefix("bench_")] = public_value(getattr(part, name))
