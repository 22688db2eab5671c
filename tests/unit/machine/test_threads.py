import os

import pytest
import torch

from folovllm.machine.threads import allowed_cores, use_allowed_cores


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5}, raising=False)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 4),
        ({"cpu.max": "max 100000\n"}, 4),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "900000 100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu.max": "nonsense"}, 4),
    ],
)
def test_cores_by_affinity_and_quota(tmp_path, four_cores, files, cores):
    group = tmp_path / "sys/fs/cgroup"
    for name, text in files.items():
        (group / name).parent.mkdir(parents=True, exist_ok=True)
        (group / name).write_text(text)
    assert allowed_cores(tmp_path) == cores


class TestUseAllowedCores:
    @pytest.fixture(autouse=True)
    def threads(self, monkeypatch):
        self.set_to = []
        monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
        monkeypatch.setattr(torch, "set_num_threads", self.set_to.append)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def test_no_more_threads_than_cores(self, monkeypatch):
        monkeypatch.setattr("folovllm.machine.threads.allowed_cores", lambda: 2)
        use_allowed_cores()
        assert self.set_to == [2]

    def test_the_user_knows_better(self, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "64")
        use_allowed_cores()
        assert self.set_to == []

    def test_fewer_threads_than_cores_are_left_alone(self, monkeypatch):
        monkeypatch.setattr("folovllm.machine.threads.allowed_cores", lambda: 128)
        use_allowed_cores()
        assert self.set_to == []
