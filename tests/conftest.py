"""What all tests share: the default model, and how they run in several processes at once."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

MOST_WORKERS = 4  # each has torch and its models in memory

# A machine that is busy is no reason to fail.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

CORES = len(getattr(os, "sched_getaffinity", lambda _: ())(0)) or os.cpu_count() or 1

# Before anything imports torch. What tests start inherits it, but is no worker itself.
if workers := int(os.environ.pop("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, CORES // workers)))
    del os.environ["PYTEST_XDIST_WORKER"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Say what `-n auto` means; 0 is none, where tests would share the memory of a GPU."""
    has_gpu = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()
    return 0 if has_gpu else min(CORES, MOST_WORKERS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Keep the other workers waiting while a test marked `alone` runs."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    folder = item.config._tmp_path_factory.getbasetemp().parent  # that of all workers
    with turn(folder / "turn.lock", alone=item.get_closest_marker("alone") is not None):
        return (yield)


@contextmanager
def turn(path: Path, *, alone: bool) -> Iterator[None]:
    """Hold a lock together with others, or alone; who waits is not overtaken."""
    with path.open("a") as door, path.with_suffix(".room").open("a") as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        try:
            yield
        finally:  # closing it is not enough where a test left a forked process behind
            fcntl.flock(room, fcntl.LOCK_UN)


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The default model's folder, fetched when it is not there yet."""
    from folovllm import ensure_demo_model

    return ensure_demo_model()
