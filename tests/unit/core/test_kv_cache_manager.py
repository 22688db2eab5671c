import pytest

from folovllm.core.kv_cache_manager import KVCacheManager
from folovllm.request import Sequence, SequenceData, SequenceStatus
from folovllm.sampling_params import SamplingParams


def make_cache(num_blocks=10, block_size=4, *, caching=True, host=0) -> KVCacheManager:
    return KVCacheManager(
        num_blocks, block_size, enable_prefix_caching=caching, num_host_blocks=host
    )


def make_sequence(prompt, **params) -> Sequence:
    return Sequence("r-0", "r", SequenceData(list(prompt)), SamplingParams(**params))


def admit(cache, seq, num_tokens=None) -> bool:
    """What a scheduler does with a waiting sequence."""
    cached = cache.find_cached_blocks(seq)
    rest = seq.get_len() - len(cached) * cache.block_size
    return cache.admit(seq, cached, rest if num_tokens is None else num_tokens)


def compute(cache, prompt, **params) -> Sequence:
    """A sequence whose prompt was computed in a step of its own."""
    seq = make_sequence(prompt, **params)
    cache.begin_step()
    assert admit(cache, seq)
    cache.take_moves()
    seq.num_computed_tokens = seq.get_len()
    return seq


def fork(cache, parent) -> Sequence:
    child = make_sequence(parent.data.prompt_token_ids)
    cache.fork(parent, child)
    return child


def append(*sequences) -> None:
    for seq in sequences:
        seq.add_token_id(7)


class TestBlocks:
    @pytest.mark.parametrize("num_blocks", [0, 1])
    def test_a_cache_without_a_usable_block_is_refused(self, num_blocks):
        with pytest.raises(ValueError, match=f"num_blocks must be at least 2.* got {num_blocks}"):
            make_cache(num_blocks)

    @pytest.mark.parametrize(("length", "count"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
    def test_takes_as_many_as_the_tokens_need(self, length, count):
        cache = make_cache()
        seq = compute(cache, range(length))
        assert seq.block_ids == list(range(1, count + 1))
        assert cache.usage == pytest.approx(count / 9)
        cache.free(seq)
        assert (seq.block_ids, cache.usage) == ([], 0)

    def test_takes_a_new_block_when_the_last_is_full(self):
        cache = make_cache()
        seq = compute(cache, range(3))
        for blocks in ([1], [1, 2], [1, 2]):
            append(seq)
            assert cache.allocate(seq, 1)
            seq.num_computed_tokens += 1
            assert seq.block_ids == blocks

    def test_a_chunk_takes_only_its_own_blocks(self):
        cache = make_cache()
        seq = make_sequence(range(20))
        assert admit(cache, seq, 6)
        assert len(seq.block_ids) == 2
        seq.num_computed_tokens = 6
        assert cache.allocate(seq, 11)
        assert len(seq.block_ids) == 5

    def test_nothing_changes_where_blocks_are_missing(self):
        cache = make_cache(4)
        assert not admit(cache, make_sequence(range(13)))
        seq = compute(cache, range(8))
        append(seq)
        other = compute(cache, range(50, 54))
        assert not cache.has_free_blocks
        assert not cache.allocate(seq, 1)
        cache.check_integrity([seq, other])
        cache.free(other)
        assert cache.has_free_blocks
        assert cache.allocate(seq, 1)

    def test_the_tail_is_handed_out_anew_first(self):
        cache = make_cache(4)
        cache.free(compute(cache, range(12)))
        compute(cache, range(50, 54))
        # The first two blocks of the three are still there.
        assert len(cache.find_cached_blocks(make_sequence(range(12)))) == 2


class TestPrefixCaching:
    def test_shares_the_longest_prefix_of_whole_blocks(self):
        cache = make_cache()
        first = compute(cache, range(10))
        second = compute(cache, [*range(9), 99, 99])
        assert second.block_ids[:2] == first.block_ids[:2]
        assert second.block_ids[2] not in first.block_ids
        assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 8)
        assert (cache.prefix_cache_queries, cache.prefix_cache_hits) == (21, 8)
        cache.check_integrity([first, second])

    @pytest.mark.parametrize(("length", "hit"), [(8, 4), (9, 8), (12, 8), (4, 0)])
    def test_leaves_the_last_token_to_compute(self, length, hit):
        cache = make_cache()
        compute(cache, range(12))
        assert compute(cache, range(length)).num_cached_tokens == hit

    def test_a_block_after_another_prefix_is_another_block(self):
        cache = make_cache()
        compute(cache, [1, 1, 1, 1, 2, 2, 2, 2])
        assert cache.find_cached_blocks(make_sequence([2] * 5)) == []

    def test_finds_generated_tokens_too(self):
        cache = make_cache()
        seq = compute(cache, range(3))
        append(seq)
        assert cache.allocate(seq, 1)
        assert cache.find_cached_blocks(make_sequence([0, 1, 2, 7, 9])) == seq.block_ids

    def test_finds_what_is_scheduled_in_the_same_step(self):
        cache = make_cache()
        first, second = make_sequence(range(9)), make_sequence(range(9))
        cache.begin_step()
        assert admit(cache, first)
        assert admit(cache, second)
        assert second.block_ids[:2] == first.block_ids[:2]

    def test_does_not_find_what_later_chunks_will_fill(self):
        cache = make_cache()
        assert admit(cache, make_sequence(range(12)), 7)
        assert len(cache.find_cached_blocks(make_sequence(range(12)))) == 1

    def test_counts_the_blocks_that_it_would_take_from_the_free_ones(self):
        cache = make_cache(5)
        cache.free(compute(cache, range(9)))
        other = compute(cache, range(50, 53))  # takes the one that was never used
        seq = make_sequence(range(13))
        # Two found, which are free, and two new: but three are free.
        assert len(cache.find_cached_blocks(seq)) == 2
        assert not admit(cache, seq)
        cache.check_integrity([other])
        assert admit(cache, make_sequence(range(12)))

    def test_is_off(self):
        cache = make_cache(caching=False)
        cache.free(compute(cache, range(9)))
        seq = compute(cache, range(9))
        assert (seq.num_cached_tokens, seq.block_hashes) == (0, [])
        assert (cache.prefix_cache_queries, cache.prefix_cache_hits) == (0, 0)

    def test_prompt_logprobs_need_every_logit(self):
        cache = make_cache()
        compute(cache, range(9))
        asking = compute(cache, range(9), prompt_logprobs=0)
        assert asking.num_cached_tokens == 0
        assert cache.prefix_cache_queries == 9
        # And yet what it computes can be found by others.
        other = compute(cache, range(50, 59), prompt_logprobs=0)
        assert cache.find_cached_blocks(make_sequence(range(50, 59))) == other.block_ids[:2]

    def test_only_the_first_admission_counts(self):
        cache = make_cache()
        seq = compute(cache, range(9))
        cache.free(seq)
        seq.num_computed_tokens = 0
        assert admit(cache, seq)
        assert (seq.num_computed_tokens, seq.num_cached_tokens) == (8, 0)
        assert (cache.prefix_cache_queries, cache.prefix_cache_hits) == (9, 0)

    def test_the_first_block_with_a_hash_keeps_it(self):
        cache = make_cache()
        first, second = (compute(cache, range(9), prompt_logprobs=0) for _ in range(2))
        assert cache.find_cached_blocks(make_sequence(range(9))) == first.block_ids[:2]
        cache.check_integrity([first, second])


class TestForget:
    def test_takes_back_what_a_step_was_to_fill(self):
        cache = make_cache()
        seq = compute(cache, range(6))
        cache.begin_step()
        append(seq, seq)
        assert cache.allocate(seq, 2)
        failed = make_sequence(range(50, 59))
        assert admit(cache, failed)
        cache.free(failed)  # aborted while the step was computed
        cache.forget()
        assert cache.find_cached_blocks(make_sequence(range(50, 59))) == []
        # What an earlier step filled stays.
        assert cache.find_cached_blocks(make_sequence([*range(6), 7, 7, 9])) == seq.block_ids[:1]

    def test_leaves_the_block_that_had_the_hash_before(self):
        cache = make_cache()
        first = compute(cache, range(9))
        compute(cache, range(9), prompt_logprobs=0)
        cache.forget()
        assert cache.find_cached_blocks(make_sequence(range(9))) == first.block_ids[:2]


class TestFork:
    def test_shares_all_blocks(self):
        cache = make_cache()
        parent = compute(cache, range(6))
        child = fork(cache, parent)
        assert child.block_ids == parent.block_ids
        assert child.block_ids is not parent.block_ids
        assert child.num_computed_tokens == 6
        assert child.num_cached_tokens == 0
        assert cache.usage == pytest.approx(2 / 9)
        cache.check_integrity([parent, child])
        cache.free(parent)
        cache.check_integrity([child])

    def test_all_but_the_last_owner_get_a_copy(self):
        cache = make_cache()
        parent = compute(cache, range(6))
        family = [parent, fork(cache, parent), fork(cache, parent)]
        append(*family)
        cache.begin_step()
        assert all(cache.allocate(seq, 1) for seq in family)
        assert [seq.block_ids for seq in family] == [[1, 3], [1, 4], [1, 2]]
        assert cache.take_moves() == ((), ((2, 3), (2, 4)), ())
        assert cache.take_moves() == ((), (), ())
        cache.check_integrity(family)

    def test_at_a_blocks_border_nothing_is_copied(self):
        cache = make_cache()
        parent = compute(cache, range(8))
        family = [parent, fork(cache, parent)]
        append(*family)
        assert all(cache.allocate(seq, 1) for seq in family)
        assert [seq.block_ids for seq in family] == [[1, 2, 3], [1, 2, 4]]
        assert cache.take_moves() == ((), (), ())

    def test_a_copy_needs_a_block(self):
        cache = make_cache(3)
        parent = compute(cache, range(6))
        child = fork(cache, parent)
        append(parent, child)
        assert not cache.allocate(parent, 1)
        cache.check_integrity([parent, child])
        cache.free(child)  # and now it is alone
        assert cache.allocate(parent, 1)
        assert parent.block_ids == [1, 2]
        assert cache.take_moves() == ((), (), ())

    @pytest.mark.parametrize("swap", [False, True])
    def test_the_source_of_a_copy_is_nobodys_target_in_the_same_step(self, swap):
        cache = make_cache(5, host=9)
        parent = compute(cache, range(6))
        child = fork(cache, parent)
        other = compute(cache, range(50, 54))
        append(parent, child, other)
        cache.begin_step()
        assert cache.allocate(parent, 1)
        # The last other owner leaves when the copy is planned already.
        if swap:
            assert cache.swap_out(child)
            child.status = SequenceStatus.SWAPPED
        else:
            cache.free(child)
        assert not cache.has_free_blocks
        assert not cache.allocate(other, 1)
        swap_out, copies, _ = cache.take_moves()
        assert (swap_out, copies) == ((((1, 1), (2, 2)) if swap else ()), ((2, 4),))
        cache.check_integrity([parent, child, other])
        cache.begin_step()
        assert cache.allocate(other, 1)
        assert other.block_ids == [3, 2]


class TestSwap:
    def test_moves_out_and_in(self):
        cache = make_cache(host=9)
        seq = compute(cache, range(6))
        cache.begin_step()
        assert cache.swap_out(seq)
        seq.status = SequenceStatus.SWAPPED
        assert cache.take_moves() == (((1, 1), (2, 2)), (), ())
        assert cache.usage == 0
        cache.check_integrity([seq])
        compute(cache, range(50, 54))  # somebody else has the first blocks now
        seq.data.output_token_ids.extend([7] * 3)
        assert cache.swap_in(seq, 3)
        seq.status = SequenceStatus.RUNNING
        assert len(seq.block_ids) == 3
        assert cache.take_moves() == ((), (), tuple(zip([1, 2], seq.block_ids, strict=False)))

    def test_its_full_blocks_are_found_again(self):
        cache = make_cache(5, host=9)
        seq = compute(cache, range(6))
        assert cache.swap_out(seq)
        seq.status = SequenceStatus.SWAPPED
        append(seq, seq)
        assert cache.swap_in(seq, 2)
        seq.status = SequenceStatus.RUNNING
        # The first was found where it was before, and the second is filled now.
        assert len(cache.find_cached_blocks(make_sequence([*range(6), 7, 7, 9]))) == 2
        cache.check_integrity([seq])

    @pytest.mark.parametrize("host", [0, 1, 2])
    def test_nothing_changes_where_the_host_has_no_room(self, host):
        cache = make_cache(host=host)
        seq = compute(cache, range(6))
        assert not cache.swap_out(seq)
        assert cache.take_moves() == ((), (), ())
        cache.check_integrity([seq])

    def test_comes_back_only_with_room_for_what_is_next(self):
        cache = make_cache(4, host=9)
        seq = compute(cache, range(8))
        assert cache.swap_out(seq)
        seq.status = SequenceStatus.SWAPPED
        append(seq)
        other = compute(cache, [50])
        assert not cache.swap_in(seq, 1)
        cache.check_integrity([seq, other])
        cache.free(other)
        assert cache.swap_in(seq, 1)

    def test_frees_the_hosts_blocks(self):
        cache = make_cache(host=3)
        seq = compute(cache, range(6))
        assert cache.swap_out(seq)
        seq.status = SequenceStatus.SWAPPED
        cache.free(seq)
        cache.check_integrity([])
        assert cache.swap_out(compute(cache, range(6)))


class TestIntegrity:
    def test_finds_a_leak(self):
        cache = make_cache()
        compute(cache, range(6))
        with pytest.raises(RuntimeError, match="block 1 counts 1 owners and has 0"):
            cache.check_integrity([])

    def test_finds_a_leak_on_the_host(self):
        cache = make_cache(host=9)
        assert cache.swap_out(compute(cache, range(6)))
        with pytest.raises(RuntimeError, match="block 1 counts 1 owners and has 0"):
            cache.check_integrity([])


def test_discarded_blocks_are_not_found_and_those_without_owner_are_named():
    cache = make_cache()
    first, second = compute(cache, range(9)), compute(cache, range(9))
    ids = first.block_ids
    assert ids[:2] == second.block_ids[:2]
    cache.free(first)
    assert cache.discard(ids) == ids[2:]
    assert cache.find_cached_blocks(make_sequence(range(9))) == []
    cache.check_integrity([second])
