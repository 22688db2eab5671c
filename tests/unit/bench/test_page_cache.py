import mmap
import os
import sys

import pytest

from folovllm.bench import page_cache
from folovllm.bench.page_cache import drop, read_through, resident_share, set_state
from folovllm.bench.results import BenchError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the page cache is Linux's")

PAGES = 64


@pytest.fixture
def file(tmp_path):
    """64 pages and one byte, on a disk if the temporary folder is."""
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(PAGES * mmap.PAGESIZE + 1))
    return path


@pytest.fixture
def droppable(file):
    """The same; a file system in memory keeps its pages."""
    drop([file])
    if resident_share([file]):
        pytest.skip("this file system keeps its pages")
    return file


def test_reads_all_bytes(file):
    assert read_through([file, file]) == 2 * (PAGES * mmap.PAGESIZE + 1)


def test_warm_after_reading(file):
    read_through([file])
    assert resident_share([file]) == 1.0


def test_tells_the_share_of_pages(droppable):
    with droppable.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
        os.pread(stream.fileno(), 16 * mmap.PAGESIZE, 0)
    assert 16 <= resident_share([droppable]) * (PAGES + 1) < PAGES


def test_several_files_count_by_their_pages(droppable, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(bytes(mmap.PAGESIZE))
    assert resident_share([droppable, other]) == 1 / (PAGES + 2)


def test_a_mapped_file_is_seen_to_stay(droppable):
    with (
        droppable.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view,
    ):
        bytes(view)
        with pytest.raises(BenchError, match="cannot be made cold: 100% of the weights stay"):
            set_state("cold", droppable.parent, [droppable])


@pytest.mark.parametrize(("state", "share"), [("cold", 0.0), ("warm", 1.0)])
def test_state_is_set_and_proven(state, share, droppable):
    assert set_state(state, droppable.parent, [droppable]) == share


def test_a_file_that_does_not_fit(file, monkeypatch):
    monkeypatch.setattr(page_cache, "resident_share", lambda _: 0.5)
    with pytest.raises(BenchError, match="only 50% of the weights fit"):
        set_state("warm", file.parent, [file])


def test_does_not_believe_what_the_kernel_says_of_foreign_files(file, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(BenchError, match="told only to who may write it"):
        resident_share([file])
