"""Three threads that add, abort and stream at random: what is left, and whether it was right."""

import gc
import random
import threading
from collections import deque
from itertools import count
from pathlib import Path

import pytest

from folovllm import SamplingParams
from folovllm.sampling_params import RequestOutputKind

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_REQUESTS = 20_000
NUM_THREADS = 3
MIB = 1 << 20
SEED = 20


def make_cases():
    """Prompts of which many begin alike, with parameters by which their tokens are certain."""
    rng = random.Random(SEED)
    prefixes = [[rng.randrange(3, 90) for _ in range(12)] for _ in range(4)]
    cases = []
    for i in range(48):
        prompt = [*rng.choice(prefixes)[: rng.randrange(12)], rng.randrange(3, 90)]
        options = {"temperature": 0} if i % 3 else {"temperature": 1.5, "seed": i}
        params = SamplingParams(
            max_tokens=1 + i % 4, ignore_eos=True, n=1 + (i % 6 == 0), **options
        )
        cases.append((prompt, params))
    return cases


CASES = make_cases()


def tokens_in(output):
    return [completion.token_ids for completion in output.outputs]


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class User(threading.Thread):
    """One who uses the engine in every way there is, at random."""

    def __init__(self, llm, expected, number, tickets):
        super().__init__(daemon=True)
        self.llm, self.expected, self.tickets = llm, expected, tickets
        self.random = random.Random(number)
        self.error = None
        self.compared = 0

    def run(self):
        try:
            while next(self.tickets) < NUM_REQUESTS:
                self.random.choice((self.generate, self.stream, self.post, self.post))()
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.error = error

    def take(self, most):
        """Some cases; each is one of the requests."""
        places = [self.random.randrange(len(CASES)) for _ in range(self.random.randint(1, most))]
        for _ in places[1:]:
            next(self.tickets)
        return places, [CASES[place][0] for place in places], [CASES[place][1] for place in places]

    def compare(self, place, tokens):
        assert tokens == self.expected[place]
        self.compared += 1

    def generate(self):
        places, prompts, params = self.take(24)
        for place, output in zip(
            places, self.llm.generate(prompts, params, use_tqdm=False), strict=True
        ):
            self.compare(place, tokens_in(output))

    def stream(self):
        """To the end, or closed after some outputs, or left for the collector to close."""
        places, prompts, params = self.take(12)
        outputs = self.llm.stream(prompts, params)
        enough = self.random.choice((1, 3, 10_000))
        joined = [[[] for _ in self.expected[place]] for place in places]
        finished = []
        for output in outputs:
            place = int(output.request_id.partition("-")[0])
            for completion in output.outputs:
                joined[place][completion.index] += completion.token_ids
            if output.finished:
                finished.append(place)
            enough -= 1
            if not enough:
                break
        for place in finished:
            self.compare(places[place], joined[place])
        if self.random.random() < 0.5:
            outputs.close()

    def post(self):
        """By the engine itself, with names that are used again, and aborted at any moment."""
        engine, inbox = self.llm.llm_engine, deque()
        place = self.random.randrange(len(CASES))
        prompt, params = CASES[place]
        name = f"{self.name}-{self.random.randrange(3)}"
        engine.add_request(name, prompt, params, deliver=inbox.append)
        if self.random.random() < 0.5:
            for _ in range(self.random.randrange(3)):
                engine.step()
            engine.abort_request([name, "unknown"])
        else:
            engine.step_until(lambda: inbox and (inbox[-1] is None or inbox[-1].finished))
        last = inbox[-1] if inbox else None
        if last is not None and last.finished:
            self.compare(place, tokens_in(last))


def test_twenty_thousand_requests_of_three_threads(make_llm, nothing_left):
    llm = make_llm(num_gpu_blocks_override=80, max_num_seqs=24, max_num_batched_tokens=64)
    expected = [
        tokens_in(llm.generate([prompt], params, use_tqdm=False)[0]) for prompt, params in CASES
    ]
    tickets = count()
    users = [User(llm, expected, number, tickets) for number in range(NUM_THREADS)]
    for user in users:
        user.start()
    resident = []
    while any(user.is_alive() for user in users):
        for user in users:
            user.join(0.5)
        gc.collect()
        resident.append(resident_bytes())
    assert [user.error for user in users] == [None] * NUM_THREADS
    assert next(tickets) >= NUM_REQUESTS
    assert sum(user.compared for user in users) > NUM_REQUESTS // 2
    gc.collect()  # streams that were left in the middle
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    nothing_left(llm)
    # The first quarter warms up.
    assert resident_bytes() - resident[len(resident) // 4] < 24 * MIB


@pytest.mark.parametrize("kind", RequestOutputKind)
def test_a_name_can_be_used_again_from_the_moment_of_the_abort(make_llm, kind):
    """The outputs of the old request never come as the new one's, in whatever step it ends."""
    llm = make_llm()
    engine = llm.llm_engine
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, output_kind=kind)
    expected = llm.generate([[5, 6, 7]], params, use_tqdm=False)[0].outputs[0].token_ids
    old, new = [], []
    stop = threading.Event()

    def step():
        while not stop.is_set() or engine.has_unfinished_requests():
            engine.step()

    stepper = threading.Thread(target=step, daemon=True)
    stepper.start()
    for _ in range(200):
        engine.add_request("same", [8, 9], params, deliver=old.append)
        engine.abort_request("same")
        new.clear()
        engine.add_request("same", [5, 6, 7], params, deliver=new.append)
        while not new or not new[-1].finished:
            pass
        got = [token for output in new for token in output.outputs[0].token_ids]
        assert (got if kind is RequestOutputKind.DELTA else got[-6:]) == expected
    stop.set()
    stepper.join(10)
    assert not stepper.is_alive()
