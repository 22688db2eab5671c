from collections import Counter

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from folovllm.core.block_pool import BlockPool


class TestBlockPool:
    def test_never_hands_out_the_null_block(self):
        pool = BlockPool(5)
        assert pool.get_new_blocks(4) == [1, 2, 3, 4]
        assert (pool.num_usable_blocks, pool.num_free_blocks) == (4, 0)

    def test_refuses_more_than_there_are(self):
        pool = BlockPool(3)
        with pytest.raises(RuntimeError, match="3 blocks asked of 2"):
            pool.get_new_blocks(3)
        assert pool.num_free_blocks == 2

    def test_a_pool_of_the_null_block_alone_has_nothing(self):
        pool = BlockPool(1)
        assert (pool.num_usable_blocks, pool.num_free_blocks) == (0, 0)
        assert pool.get_new_blocks(0) == []
        pool.check_integrity(Counter())

    def test_hands_out_first_what_was_freed_first(self):
        pool = BlockPool(4)
        pool.get_new_blocks(3)
        pool.free([2])
        pool.free([3, 1])
        assert pool.get_new_blocks(3) == [2, 3, 1]

    def test_a_shared_block_is_free_when_its_last_owner_left(self):
        pool = BlockPool(3)
        [block] = pool.get_new_blocks(1)
        pool.share([block])
        pool.free([block])
        assert (pool.ref_counts[block], pool.num_free_blocks) == (1, 1)
        pool.free([block])
        assert (pool.ref_counts[block], pool.num_free_blocks) == (0, 2)

    def test_a_free_block_is_found_until_it_is_handed_out(self):
        pool = BlockPool(3)
        [block] = pool.get_new_blocks(1)
        assert pool.set_hash(block, b"h")
        pool.free([block])
        assert pool.find(b"h") == block
        pool.get_new_blocks(1)  # the other one
        assert pool.find(b"h") == block
        pool.get_new_blocks(1)
        assert pool.find(b"h") is None

    def test_sharing_takes_a_block_out_of_the_middle_of_the_queue(self):
        pool = BlockPool(4)
        pool.free(pool.get_new_blocks(3))
        pool.share([2])
        assert pool.count_free([1, 2, 3]) == 2
        assert pool.get_new_blocks(2) == [1, 3]
        pool.check_integrity(Counter([1, 2, 3]))

    def test_costs_memory_only_for_blocks_that_were_used(self):
        pool = BlockPool(10**15)
        assert pool.get_new_blocks(2) == [1, 2]
        pool.free([1])
        assert pool.get_new_blocks(1) == [3]  # the freed one waits behind all others
        assert (len(pool.ref_counts), pool.num_free_blocks) == (4, 10**15 - 3)
        pool.check_integrity(Counter([2, 3]))

    def test_the_first_block_with_a_hash_keeps_it(self):
        pool = BlockPool(3)
        first, second = pool.get_new_blocks(2)
        assert pool.set_hash(first, b"h")
        assert not pool.set_hash(second, b"h")
        pool.drop_hash(second)
        assert pool.find(b"h") == first
        pool.drop_hash(first)
        assert pool.find(b"h") is None
        assert pool.set_hash(second, b"h")


class TestIntegrity:
    @pytest.fixture
    def pool(self):
        pool = BlockPool(5)
        first, *others = pool.get_new_blocks(4)
        pool.free(others)
        pool.set_hash(first, b"h")
        return pool

    def test_passes(self, pool):
        pool.check_integrity(Counter([1]))

    @pytest.mark.parametrize("owners", [[], [1, 1], [2], [1, 0], [1, 9]])
    def test_finds_wrong_owners(self, pool, owners):
        with pytest.raises(RuntimeError):
            pool.check_integrity(Counter(owners))

    def test_finds_an_owned_null_block(self, pool):
        pool.ref_counts[0] = 1
        with pytest.raises(RuntimeError, match="null block"):
            pool.check_integrity(Counter([0, 1]))

    @pytest.mark.parametrize(
        ("name", "index", "value"),
        [
            ("_next", 3, 2),
            ("_next", 3, 1),
            ("_next", 2, 4),
            ("_next", 4, 2),
            ("_previous", 3, 4),
            ("_previous", 0, 3),
            ("_hashes", 1, None),
            ("_hashes", 2, b"other"),
        ],
    )
    def test_finds_a_wrong_link_or_hash(self, pool, name, index, value):
        getattr(pool, name)[index] = value
        with pytest.raises(RuntimeError):
            pool.check_integrity(Counter([1]))

    def test_finds_an_owned_block_in_the_queue_and_a_free_one_out_of_it(self, pool):
        pool.ref_counts[1], pool.ref_counts[2] = 0, 1
        with pytest.raises(RuntimeError, match="queued wrongly"):
            pool.check_integrity(Counter([2]))

    def test_finds_a_wrong_count(self, pool):
        pool.num_free_blocks += 1
        with pytest.raises(RuntimeError, match="3 blocks are free, 4 counted"):
            pool.check_integrity(Counter([1]))


class Pool(RuleBasedStateMachine):
    """Against a list in the order of freeing, a list of owners and a dict of hashes."""

    @initialize(num_blocks=st.integers(2, 8))
    def make(self, num_blocks):
        self.pool = BlockPool(num_blocks)
        self.queue = list(range(1, num_blocks))
        self.owners: list[int] = []
        self.hashes: dict[bytes, int] = {}

    @rule(data=st.data())
    def take(self, data):
        count = data.draw(st.integers(0, len(self.queue)))
        taken, self.queue = self.queue[:count], self.queue[count:]
        assert self.pool.get_new_blocks(count) == taken
        self.owners += taken
        self.hashes = {h: block for h, block in self.hashes.items() if block not in taken}

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def free(self, data):
        order = data.draw(st.permutations(range(len(self.owners))))
        count = data.draw(st.integers(1, len(order)))
        blocks = [self.owners[i] for i in order[:count]]
        self.pool.free(blocks)
        for block in blocks:
            self.owners.remove(block)
            if block not in self.owners:
                self.queue.append(block)

    @rule(data=st.data())
    def share(self, data):
        candidates = sorted({*self.owners, *self.hashes.values()})
        if not candidates:
            return
        blocks = data.draw(st.lists(st.sampled_from(candidates), max_size=3))
        self.pool.share(blocks)
        self.owners += blocks
        self.queue = [block for block in self.queue if block not in blocks]

    @precondition(lambda self: set(self.owners) - set(self.hashes.values()))
    @rule(data=st.data(), block_hash=st.sampled_from([b"a", b"b", b"c"]))
    def set_hash(self, data, block_hash):
        unnamed = sorted(set(self.owners) - set(self.hashes.values()))
        block = data.draw(st.sampled_from(unnamed))
        assert self.pool.set_hash(block, block_hash) is (block_hash not in self.hashes)
        self.hashes.setdefault(block_hash, block)

    @rule(data=st.data())
    def drop_hash(self, data):
        used = len(self.pool.ref_counts) - 1
        if not used:
            return
        block = data.draw(st.integers(1, used))
        self.pool.drop_hash(block)
        self.hashes = {h: b for h, b in self.hashes.items() if b != block}

    @invariant()
    def agrees(self):
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity(Counter(self.owners))
        assert self.pool.num_free_blocks == len(self.queue)
        for block_hash in (b"a", b"b", b"c"):
            assert self.pool.find(block_hash) == self.hashes.get(block_hash)


Pool.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPool = Pool.TestCase
