"""The persistent table, by hand and against a dictionary of lists."""

from hypothesis import given, settings, strategies as st

from folovllm.worker.block_tables import BlockTables
from tests.unit.worker.plans import part


def change(seq_id, first, blocks):
    return part(seq_id, 0, [0], blocks, first)


def rows_of(tables, *changes, width=6):
    return tables.select(tables.update([change(*one) for one in changes]), width).tolist()


def test_a_table_is_appended_to():
    tables = BlockTables()
    assert rows_of(tables, ("a", 0, [3, 5])) == [[3, 5, 0, 0, 0, 0]]
    assert rows_of(tables, ("a", 2, [7])) == [[3, 5, 7, 0, 0, 0]]
    assert rows_of(tables, ("a", 3, [])) == [[3, 5, 7, 0, 0, 0]]


def test_its_tail_is_replaced():
    tables = BlockTables()
    rows_of(tables, ("a", 0, [3, 5, 7, 9]))
    assert rows_of(tables, ("a", 2, [4, 6])) == [[3, 5, 4, 6, 0, 0]]
    assert rows_of(tables, ("a", 1, [8])) == [[3, 8, 0, 0, 0, 0]]


def test_it_is_replaced_whole_or_cut():
    tables = BlockTables()
    rows_of(tables, ("a", 0, [3, 5, 7, 9]))
    assert rows_of(tables, ("a", 2, [])) == [[3, 5, 0, 0, 0, 0]]
    assert rows_of(tables, ("a", 0, [9])) == [[9, 0, 0, 0, 0, 0]]
    assert rows_of(tables, ("a", 0, [1, 2, 3])) == [[1, 2, 3, 0, 0, 0]]


def test_rows_come_in_the_order_of_the_plan_and_are_a_copy():
    tables = BlockTables()
    rows_of(tables, ("a", 0, [1]), ("b", 0, [2]))
    rows = tables.update([change("b", 1, []), change("a", 1, [])])
    selected = tables.select(rows, 2)
    assert selected.tolist() == [[2, 0], [1, 0]]
    assert selected.flags.c_contiguous
    selected[:] = 99
    assert rows_of(tables, ("a", 1, []), width=2) == [[1, 0]]


def test_a_row_is_used_again_and_nothing_of_the_first_is_left():
    tables = BlockTables()
    [row] = tables.update([change("a", 0, [1, 2, 3])])
    tables.forget(["a", "never-seen"])
    assert tables.update([change("b", 0, [9])]) == [row]
    assert tables.select([row], 3).tolist() == [[9, 0, 0]]
    assert tables.update([change("a", 0, [4])]) == [row + 1]


names = st.sampled_from([str(i) for i in range(40)])
blocks = st.lists(st.integers(1, 999), max_size=50)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_as_lists_would_have_it(data):
    tables, expected = BlockTables(), {}
    for _ in range(data.draw(st.integers(1, 8))):
        for name in data.draw(st.sets(names, max_size=6)) & set(expected):
            tables.forget([name])
            del expected[name]
        changes = []
        for name in data.draw(st.lists(names, min_size=1, unique=True, max_size=20)):
            known = expected.get(name, [])
            first = data.draw(st.integers(0, len(known)) | st.just(len(known)))
            new = data.draw(blocks | st.just([]))
            expected[name] = known[:first] + new
            changes.append(change(name, first, new))
        width = max(len(expected[one.seq_id]) for one in changes)
        rows = tables.update(changes)
        padded = [(expected[one.seq_id] + [0] * width)[:width] for one in changes]
        assert tables.select(rows, width).tolist() == padded
        assert len(set(rows)) == len(rows)
