"""Plans and results travel as JSON."""

import json

from hypothesis import given, strategies as st
from pydantic import TypeAdapter

from folovllm.core.plan import NewSequence, ScheduledSequence, StepPlan, StepResult
from folovllm.outputs import Logprob
from folovllm.sampling_params import BadWords, SamplingParams, SamplingSpec

PLANS, RESULTS = TypeAdapter(StepPlan), TypeAdapter(StepResult)

ids = st.lists(st.integers(0, 2**31), max_size=4).map(tuple)
names = st.text(max_size=5)
moves = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=3).map(tuple)
triples = st.lists(st.tuples(*[st.integers(0, 99)] * 3), max_size=3).map(tuple)
finite = st.floats(allow_nan=False, allow_infinity=False)
specs = st.builds(
    SamplingSpec,
    temperature=finite,
    top_p=finite,
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    logprobs=st.none() | st.integers(-1, 5),
    bad_words=st.builds(BadWords, triples, moves, ids),
    end_token_ids=ids,
    logit_bias=st.lists(st.tuples(st.integers(0, 99), finite), max_size=2).map(tuple),
    allowed_token_ids=st.none() | ids,
)
plans = st.builds(
    StepPlan,
    scheduled=st.lists(
        st.builds(
            ScheduledSequence,
            *(names, st.integers(0, 99), ids, st.integers(0, 9), ids),
            samples=st.lists(names, max_size=2).map(tuple),
            num_drafts=st.integers(0, 3),
            prompt_targets=ids,
        ),
        max_size=2,
    ).map(tuple),
    new=st.lists(st.builds(NewSequence, names, st.integers(0, 9), specs, ids), max_size=2).map(
        tuple
    ),
    finished=st.lists(names, max_size=2).map(tuple),
    clear=ids,
    swap_out=moves,
    copies=moves,
    swap_in=moves,
)


@given(plans)
def test_a_plan_comes_back_as_it_was(plan):
    written = PLANS.dump_json(plan)
    back = PLANS.validate_json(written)
    assert back == plan
    assert PLANS.dump_json(back) == written
    assert {type(entry) for entry in back.scheduled} <= {ScheduledSequence}
    assert {type(one.sampling) for one in back.new} <= {SamplingSpec}
    hash(back)  # nothing in it can be changed


def test_a_plan_is_made_of_plain_values():
    params = SamplingParams(bad_words=["x"], logit_bias={3: 1.5}, stop_token_ids=[4])
    new = NewSequence(
        "a-0", 0, SamplingSpec.of(params, BadWords(((0, 1, 1),), ((1, 2),), (3,)), [9]), (5,)
    )
    plan = StepPlan((ScheduledSequence("a-0", 0, (5,), 0, (7,), ("a-0",)),), (new,))
    assert PLANS.validate_python(json.loads(PLANS.dump_json(plan)), strict=False) == plan


def test_a_result_comes_back_as_it_was():
    entry = {7: Logprob(-0.5, 1), 3: Logprob(-1.5, 2)}
    result = StepResult([[7], [1, 2]], [[entry], None], {"a-0": [entry]}, {"b-0": "NaN"})
    assert RESULTS.validate_json(RESULTS.dump_json(result)) == result
