import pytest
from hypothesis import given, settings, strategies as st

from folovllm.worker.batch import find_logit_rows, make_batch
from folovllm.worker.block_tables import BlockTables
from tests.unit.worker.plans import part


@st.composite
def entries(draw):
    """Parts of sequences, each with all of its blocks, and the size of these."""
    block_size = draw(st.sampled_from([1, 3, 16]))
    made = []
    blocks = iter(range(1, 10_000))
    for i in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, 40))
        token_ids = draw(st.lists(st.integers(0, 199), min_size=1, max_size=20))
        table = [next(blocks) for _ in range(-(-(start + len(token_ids)) // block_size))]
        samples = [f"{i}-{j}" for j in range(draw(st.integers(0, 3)))]
        targets = draw(st.lists(st.integers(0, 99), max_size=len(token_ids)))
        made.append(part(f"{i}-0", start, token_ids, table, samples=samples, targets=targets))
    return made, block_size


@settings(max_examples=150, deadline=None)
@given(entries())
def test_lays_out_every_token_once(case):
    made, block_size = case
    batch = make_batch(made, BlockTables(), block_size)
    ids, positions, slots = [], [], []
    for entry in made:
        for position, token in enumerate(entry.token_ids, entry.start):
            ids.append(token)
            positions.append(position)
            block = entry.block_ids[position // block_size]
            slots.append(block * block_size + position % block_size)
    assert batch.token_ids.tolist() == ids
    assert batch.positions.tolist() == positions
    assert batch.slots.tolist() == slots
    assert batch.query_lens.tolist() == [len(e.token_ids) for e in made]
    assert batch.seq_lens.tolist() == [e.start + len(e.token_ids) for e in made]
    assert batch.block_size == block_size
    width = max(len(e.block_ids) for e in made)
    padded = [list(e.block_ids) + [0] * (width - len(e.block_ids)) for e in made]
    assert batch.block_table.tolist() == padded


@settings(max_examples=150, deadline=None)
@given(entries())
def test_asks_for_the_logits_that_are_needed(case):
    made, _ = case
    found = find_logit_rows(made)
    sampled, prompts, first = [], [], 0
    for entry in made:
        sampled += [(seq_id, first + len(entry.token_ids) - 1) for seq_id in entry.samples]
        prompts += [
            (entry.seq_id, first + place, target)
            for place, target in enumerate(entry.prompt_targets)
        ]
        first += len(entry.token_ids)
    tokens = found.tokens
    places = [tokens[row] for row in found.sampled]
    assert list(zip(found.seq_ids, places, strict=True)) == sampled
    assert prompts == [
        (one.seq_id, tokens[row], target)
        for one in found.prompts
        for row, target in zip(one.rows, one.targets, strict=True)
    ]
    # Those to sample from come first, and none of them twice.
    count = sum(bool(entry.samples) for entry in made)
    assert sorted(set(found.sampled)) == list(range(count))
    assert len(tokens) == count + len(prompts)


def test_blocks_that_are_not_needed_yet_are_left_out():
    batch = make_batch([part("a", 0, [1, 2], [7, 8, 9])], BlockTables(), 2)
    assert batch.block_table.tolist() == [[7]]


def test_tables_go_on_from_plan_to_plan():
    tables = BlockTables()
    make_batch([part("a", 0, [1, 2, 3], [7, 8])], tables, 2)
    batch = make_batch([part("b", 0, [9], [3]), part("a", 3, [4], first=2)], tables, 2)
    assert batch.slots.tolist() == [6, 17]
    assert batch.block_table.tolist() == [[3, 0], [7, 8]]


def test_drafts_are_refused():
    with pytest.raises(NotImplementedError, match="a-0: drafts"):
        find_logit_rows([part("a-0", 0, [1, 2], [7], drafts=1)])
