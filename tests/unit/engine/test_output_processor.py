import pytest
from hypothesis import given, strategies as st

from folovllm.engine.output_processor import OutputProcessor
from folovllm.outputs import Logprob
from folovllm.request import Request, SequenceStatus
from folovllm.sampling_params import RequestOutputKind, SamplingParams

EOS = 1
STOPPED = SequenceStatus.FINISHED_STOPPED
KIND = RequestOutputKind


def spell(text: str) -> list[int]:
    """ByT5's tokens: one a byte."""
    return [byte + 3 for byte in text.encode()]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Engine:
    """What the engine does around the output processor, with tokens that the test chooses."""

    def __init__(self, tokenizer):
        self.clock = Clock()
        self.processor = OutputProcessor(tokenizer, clock=self.clock)

    def add(self, request_id="r", prompt="hi", **params) -> Request:
        request = Request(request_id, prompt, spell(prompt), SamplingParams(**params))
        request.metrics.arrival_time = self.clock.now
        self.processor.prepare(request)
        return request

    def step(self, tokens, *, logprobs=None, failed=()):
        """Give each sequence its token, as the scheduler does; `tokens` are pairs of the two."""
        for place, (seq, token_id) in enumerate(tokens):
            seq.add_token_id(token_id)
            params, end = seq.sampling_params, None
            if token_id == EOS:
                end = STOPPED, None
            elif token_id in params.stop_token_ids:
                end = STOPPED, token_id
            known = None if logprobs is None else logprobs[place]
            if known is not None:
                seq.cumulative_logprob += known[token_id].logprob
            stop = self.processor.read_token(seq, token_id, known, end is not None)
            if stop is not None:
                end = STOPPED, stop
            elif end is None and seq.get_output_len() == params.max_tokens:
                end = SequenceStatus.FINISHED_LENGTH_CAPPED, None
            if end is not None:
                seq.status, seq.stop_reason = end
                seq.request.num_unfinished -= 1
        return self.outputs(failed)

    def outputs(self, failed=()):
        return [output for _, output in self.processor.make_outputs(failed)]

    def fail(self, request, error):
        """End a request as a scheduler does that was told of a failure."""
        for seq in request.get_seqs():
            if not seq.is_finished():
                seq.status = SequenceStatus.FINISHED_ABORTED
        request.num_unfinished = 0
        request.error = error
        [output] = self.outputs([request])
        return output

    def run(self, request, text, end=()):
        """Feed a request of one sequence until it is finished."""
        [seq] = request.get_seqs()
        outputs = []
        for token_id in [*spell(text), *end]:
            outputs += self.step([(seq, token_id)])
            if seq.is_finished():
                break
        return outputs


@pytest.fixture
def engine(tokenizers):
    return Engine(tokenizers["slow"])


def texts(outputs):
    return [output.outputs[0].text for output in outputs]


class TestKinds:
    def test_cumulative(self, engine):
        outputs = engine.run(engine.add(), "aé", [EOS])
        assert texts(outputs) == ["a", "a", "aé", "aé"]
        assert [o.finished for o in outputs] == [False, False, False, True]
        ids = [*spell("aé"), EOS]
        assert [o.outputs[0].token_ids for o in outputs] == [ids[:n] for n in (1, 2, 3, 4)]

    def test_delta(self, engine):
        outputs = engine.run(engine.add(output_kind=KIND.DELTA), "aé", [EOS])
        assert texts(outputs) == ["a", "", "é", ""]
        assert [i for o in outputs for i in o.outputs[0].token_ids] == [*spell("aé"), EOS]
        assert [o.outputs[0].finish_reason for o in outputs] == [None, None, None, "stop"]

    def test_final_only(self, engine):
        [output] = engine.run(engine.add(output_kind=KIND.FINAL_ONLY), "aé", [EOS])
        assert output.finished
        assert (output.outputs[0].text, output.outputs[0].token_ids) == ("aé", [*spell("aé"), EOS])
        assert (output.request_id, output.prompt, output.prompt_token_ids) == (
            "r",
            "hi",
            spell("hi"),
        )

    @given(
        text=st.text("ab é🙂", max_size=12),
        stop=st.lists(st.text("ab é🙂", min_size=1, max_size=3), max_size=2),
        include=st.booleans(),
        min_tokens=st.integers(0, 5),
    )
    def test_all_say_the_same(self, tokenizers, text, stop, include, min_tokens):
        final = {}
        for kind in KIND:
            engine = Engine(tokenizers["slow"])
            request = engine.add(
                output_kind=kind,
                stop=stop,
                include_stop_str_in_output=include,
                min_tokens=min_tokens,
                max_tokens=100,
            )
            outputs = engine.run(request, text, [EOS])
            last = outputs[-1].outputs[0]
            if kind is KIND.DELTA:
                whole, ids = (
                    "".join(texts(outputs)),
                    [i for o in outputs for i in o.outputs[0].token_ids],
                )
            else:
                whole, ids = last.text, last.token_ids
            assert all(whole.startswith(shown) for shown in texts(outputs)) or kind is KIND.DELTA
            final[kind] = (whole, ids, last.finish_reason, last.stop_reason)
        assert len(set(map(repr, final.values()))) == 1

    def test_waiting_requests_have_no_output(self, engine):
        engine.add("other")
        assert len(engine.run(engine.add(), "a")) == 1


class TestTheEnd:
    def test_end_of_sequence(self, engine):
        output = engine.run(engine.add(skip_special_tokens=False), "a", [EOS])[-1].outputs[0]
        assert (output.text, output.finish_reason, output.stop_reason) == ("a", "stop", None)

    def test_length(self, engine):
        output = engine.run(engine.add(max_tokens=2), "abc")[-1].outputs[0]
        assert (output.text, output.finish_reason, output.stop_reason) == ("ab", "length", None)

    def test_within_a_character(self, engine):
        assert engine.run(engine.add(max_tokens=3), "a🙂")[-1].outputs[0].text == "a"

    @pytest.mark.parametrize(("include", "text"), [(False, "a"), (True, "aX")])
    def test_stop_id(self, engine, include, text):
        [stop] = spell("X")
        request = engine.add(stop_token_ids=[stop], include_stop_str_in_output=include)
        output = engine.run(request, "aXb")[-1].outputs[0]
        assert (output.text, output.finish_reason, output.stop_reason) == (text, "stop", stop)

    def test_stop_string(self, engine):
        output = engine.run(engine.add(stop="bc"), "abcd")[-1].outputs[0]
        assert (output.text, output.finish_reason, output.stop_reason) == ("a", "stop", "bc")
        assert output.token_ids == spell("abc")

    def test_stop_string_at_the_length(self, engine):
        output = engine.run(engine.add(stop="bc", max_tokens=3), "abc")[-1].outputs[0]
        assert (output.text, output.finish_reason, output.stop_reason) == ("a", "stop", "bc")

    def test_what_was_held_back_comes_out(self, engine):
        outputs = engine.run(engine.add(stop="bc", output_kind=KIND.DELTA), "ab", [EOS])
        assert texts(outputs) == ["a", "", "b"]

    def test_is_shown_once(self, engine):
        engine.run(engine.add(), "a", [EOS])
        assert engine.outputs() == []


class TestDetokenizing:
    def test_none_at_all(self, engine):
        output = engine.run(engine.add(detokenize=False), "a", [EOS])[-1].outputs[0]
        assert (output.text, output.token_ids) == ("", [*spell("a"), EOS])

    def test_without_a_tokenizer(self):
        engine = Engine(None)
        assert texts(engine.run(engine.add(), "a", [EOS])) == ["", ""]


class TestSeveralSequences:
    def test_each_has_its_place(self, engine):
        first, second = engine.add(n=2).get_seqs()
        [output] = engine.step([(second, *spell("b"))])
        assert [(o.index, o.text) for o in output.outputs] == [(0, ""), (1, "b")]
        [output] = engine.step([(first, *spell("a")), (second, EOS)])
        assert [o.finish_reason for o in output.outputs] == [None, "stop"]
        assert not output.finished
        [output] = engine.step([(first, EOS)])
        assert [o.text for o in output.outputs] == ["a", "b"]
        assert output.finished

    def test_delta_has_what_changed(self, engine):
        first, second = engine.add(n=2, output_kind=KIND.DELTA).get_seqs()
        [output] = engine.step([(first, EOS), (second, *spell("b"))])
        assert [(o.index, o.text) for o in output.outputs] == [(0, ""), (1, "b")]
        [output] = engine.step([(second, EOS)])
        assert [(o.index, o.token_ids) for o in output.outputs] == [(1, [EOS])]
        assert output.finished

    @pytest.mark.parametrize("kind", KIND)
    def test_best_of_returns_the_likeliest_when_all_are_finished(self, engine, kind):
        request = engine.add(n=2, best_of=3, output_kind=kind)
        seqs = request.get_seqs()
        tokens = spell("abc")
        likely = [-3.0, -1.0, -2.0]
        logprobs = [{t: Logprob(p)} for t, p in zip(tokens, likely, strict=True)]
        assert engine.step(list(zip(seqs, tokens, strict=True)), logprobs=logprobs) == []
        end = [{EOS: Logprob(-0.5)}] * 3
        [output] = engine.step([(seq, EOS) for seq in seqs], logprobs=end)
        assert [(o.index, o.text) for o in output.outputs] == [(0, "b"), (1, "c")]
        assert output.outputs[0].cumulative_logprob is None  # not asked for
        assert output.outputs[0].token_ids == [tokens[1], EOS]


class TestLogprobs:
    def logprobs(self, text):
        other = spell("z")[0]
        return [{t: Logprob(-1.0, 1), other: Logprob(-2.0, 2)} for t in spell(text)]

    def test_have_their_text_and_their_sum(self, engine):
        [seq] = engine.add(logprobs=1).get_seqs()
        for token_id, new in zip(spell("ab"), self.logprobs("ab"), strict=True):
            [output] = engine.step([(seq, token_id)], logprobs=[new])
        [completion] = output.outputs
        decoded = [[p.decoded_token for p in d.values()] for d in completion.logprobs]
        assert decoded == [["a", "z"], ["b", "z"]]
        assert completion.cumulative_logprob == -2.0

    def test_delta(self, engine):
        [seq] = engine.add(logprobs=1, output_kind=KIND.DELTA).get_seqs()
        for token_id, new in zip(spell("ab"), self.logprobs("ab"), strict=True):
            [output] = engine.step([(seq, token_id)], logprobs=[new])
            assert output.outputs[0].logprobs == [new]
        assert output.outputs[0].cumulative_logprob == -2.0

    def test_no_text_without_detokenizing(self, engine):
        [seq] = engine.add(logprobs=1, detokenize=False).get_seqs()
        [output] = engine.step([(seq, *spell("a"))], logprobs=self.logprobs("a"))
        assert {p.decoded_token for p in output.outputs[0].logprobs[0].values()} == {None}

    def test_a_neighbours_are_not_mine(self, engine):
        [mine] = engine.add("mine").get_seqs()
        [other] = engine.add("other", logprobs=0).get_seqs()
        a, b = spell("ab")
        outputs = engine.step([(mine, a), (other, b)], logprobs=[None, {b: Logprob(-1.0)}])
        assert [o.outputs[0].logprobs is None for o in outputs] == [True, False]
        assert outputs[0].outputs[0].cumulative_logprob is None


class TestPromptLogprobs:
    def chunk(self, engine, request, start, num_tokens, *, sample=False):
        [seq] = request.get_seqs()
        ids = request.prompt_token_ids[start + 1 : start + 1 + num_tokens]
        new = [{token_id: Logprob(-1.0 * token_id)} for token_id in ids]
        engine.processor.read_prompt(seq, start + 1, new)
        return engine.step([(seq, *spell("x"))] if sample else [])

    @pytest.mark.parametrize("kind", KIND)
    @pytest.mark.parametrize(
        "chunks", [[(0, 4)], [(0, 2), (2, 2)], [(0, 1), (1, 1), (2, 1), (3, 1)], [(0, 3), (0, 4)]]
    )
    def test_in_chunks_and_after_a_preemption(self, engine, kind, chunks):
        request = engine.add(prompt="abcd", prompt_logprobs=0, output_kind=kind, max_tokens=9)
        for start, num_tokens in chunks:
            last = start + num_tokens == 4
            outputs = self.chunk(engine, request, start, num_tokens, sample=last)
        outputs += engine.step([(request.get_seqs()[0], EOS)])
        got = outputs[0].prompt_logprobs
        assert got[0] is None
        assert [next(iter(d)) for d in got[1:]] == spell("bcd")
        assert [next(iter(d.values())).decoded_token for d in got[1:]] == ["b", "c", "d"]
        assert (outputs[-1].prompt_logprobs is None) == (kind is KIND.DELTA)

    def test_only_for_who_asked(self, engine):
        request = engine.add(prompt="abcd")
        [output] = self.chunk(engine, request, 0, 4, sample=True)
        assert output.prompt_logprobs is None


class TestFailure:
    def test_gives_what_there_is(self, engine):
        request = engine.add(n=2, stop="bc")
        first, second = request.get_seqs()
        engine.step([(first, EOS), (second, *spell("a"))])
        engine.step([(second, *spell("b"))])
        output = engine.fail(request, "out of memory")
        assert output.finished
        assert output.error == "out of memory"
        assert [(o.text, o.finish_reason) for o in output.outputs] == [
            ("", "stop"),
            ("ab", "abort"),
        ]

    def test_delta_has_the_rest(self, engine):
        request = engine.add(output_kind=KIND.DELTA, stop="bc")
        [seq] = request.get_seqs()
        engine.step([(seq, *spell("a"))])
        engine.step([(seq, *spell("b"))])
        [completion] = engine.fail(request, "why").outputs
        assert (completion.text, completion.finish_reason, completion.token_ids) == (
            "b",
            "abort",
            [],
        )

    @pytest.mark.parametrize("kind", KIND)
    def test_before_anything(self, engine, kind):
        output = engine.fail(engine.add(best_of=2, output_kind=kind), "why")
        assert [(o.text, o.finish_reason) for o in output.outputs] == [("", "abort")]

    def test_one_output_where_others_of_its_sequences_have_moved(self, engine):
        request = engine.add(n=2)
        first, second = request.get_seqs()
        second.status = SequenceStatus.FINISHED_ABORTED
        request.num_unfinished, request.error = 1, "why"
        [output] = engine.step([(first, EOS)], failed=[request])
        assert [o.finish_reason for o in output.outputs] == ["stop", "abort"]
        assert output.error == "why"


class TestMetrics:
    def test_times(self, engine):
        [seq] = engine.add(max_tokens=3).get_seqs()
        for now, text in ((103.0, "a"), (104.0, "b"), (106.0, "c")):
            engine.clock.now = now
            [output] = engine.step([(seq, *spell(text))])
        metrics = output.metrics
        assert metrics.arrival_time == 100.0
        assert metrics.first_token_time == 103.0
        assert metrics.last_token_time == metrics.finished_time == 106.0
        assert metrics.num_generation_tokens == 3
        assert metrics.time_per_output_token == 1.5

    def test_what_the_scheduler_counted(self, engine):
        first, second = engine.add(n=2).get_seqs()
        first.num_cached_tokens, second.num_cached_tokens = 7, 9
        [output] = engine.step([(first, EOS)])
        assert output.num_cached_tokens == 7
        assert output.metrics is first.request.metrics
