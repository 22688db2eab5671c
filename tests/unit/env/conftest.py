"""A miniature checkout with its own wheels, which the real set-up is run on with the real pip."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "folovllm"
version = "1.0"
requires-python = ">=3.10"
dependencies = ["torch>=2.11", "tiny>=1", "transformers"]

[dependency-groups]
dev = [{ include-group = "more" }]
more = ["tiny"]
"""

# A build backend that does what the set-up needs of hatchling: an editable wheel.
BACKEND = """
import pathlib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "folovllm-1.0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as wheel:
        info = "folovllm-1.0.dist-info"
        wheel.writestr("folovllm.pth", str(pathlib.Path("src").absolute()))
        lines = ["Metadata-Version: 2.1", "Name: folovllm", "Version: 1.0", ""]
        wheel.writestr(f"{info}/METADATA", "\\n".join(lines))
        lines = ["Wheel-Version: 1.0", "Root-Is-Purelib: true", "Tag: py3-none-any", ""]
        wheel.writestr(f"{info}/WHEEL", "\\n".join(lines))
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""

# Says that it has begun, then takes longer than any test.
SLOW_BACKEND = """
import os, pathlib, time

def build_wheel(folder, config_settings=None, metadata_directory=None):
    pathlib.Path(os.environ["SLOW_STARTED"]).touch()
    time.sleep(100)
"""

# The CUDA build sees a Hopper GPU, the CPU build none.
TORCH = """
__version__ = "{version}"

class version:
    cuda = None if "cpu" in __version__ else "13.0"

class cuda:
    is_available = staticmethod(lambda: True)
    get_device_capability = staticmethod(lambda index: (9, 0))

class ones:
    def __init__(self, *shape): pass
    def __matmul__(self, other): return self
    def sum(self): return self
    def item(self): return 512
"""

# In the place of `env/probes.py`: the packages of the tests judge themselves.
PROBES = """
import importlib, sys
module = importlib.import_module(sys.argv[1].replace("-", "_"))
print("a banner")
print(module.prove())
"""

MEMORY = """
def available_memory():
    return 40 * 10**9
"""

# A build backend of flash-attn that keeps what it was told, or takes longer than any test.
FLASH_BACKEND = """
import os, pathlib, time, zipfile

METADATA = "Metadata-Version: 2.1\\nName: flash-attn\\nVersion: 2.8.3\\nRequires-Dist: torch\\n"
TOLD = ("FLASH_ATTN_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST", "FLASH_ATTENTION_FORCE_BUILD")

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "flash_attn-2.8.3.dist-info")
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    return info.name

def build_wheel(folder, config_settings=None, metadata_directory=None):
    import torch  # there is no isolation from it
    if "SLOW_FLASH" in os.environ:
        pathlib.Path(os.environ["SLOW_STARTED"]).touch()
        time.sleep(100)
    name = "flash_attn-2.8.3-py3-none-any.whl"
    said = " ".join(os.environ[each] for each in TOLD)
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as wheel:
        info = "flash_attn-2.8.3.dist-info"
        wheel.writestr("flash_attn.py", f"def prove(): return {said!r}")
        wheel.writestr(f"{info}/METADATA", METADATA)
        lines = ["Wheel-Version: 1.0", "Root-Is-Purelib: true", "Tag: py3-none-any", ""]
        wheel.writestr(f"{info}/WHEEL", "\\n".join(lines))
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""

# A uv that has torch in the folder that `HAS` names.
FAKE_UV = """#!python
import os, subprocess, sys
call = sys.argv[1:]
assert call[:2] == ["pip", "install"] and "--no-deps" in call, call
assert call[call.index("--torch-backend") + 1] == "cpu", call
pip = [call[call.index("--python") + 1], "-m", "pip", "install", "--find-links", os.environ["HAS"]]
if "--dry-run" not in call:
    subprocess.run([*pip, "--no-deps", "-r", call[call.index("-r") + 1]], check=True)
"""

SET_UP = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from env import setup
from env.errors import SetupError
try:
    setup.run(pathlib.Path.cwd(), sys.argv[2:])
except SetupError as error:
    sys.exit(f"error: {error}")
"""


def make_wheel(folder, name, version, module, *, requires=(), script=None):
    """Write a wheel of one module; return the line that locks it."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {each}\n" for each in requires)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", module)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
        )
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tag)
        wheel.writestr(f"{info}/RECORD", "")
        if script:
            member = zipfile.ZipInfo(f"{name}-{version}.data/scripts/{name}")
            member.external_attr = 0o100755 << 16
            wheel.writestr(member, script)
    return locked(name, version, path)


def make_sdist(folder, name, version, backend):
    """Write a source distribution with a build backend; return the line that locks it."""
    path = folder / f"{name}-{version}.tar.gz"
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\n'
        f'backend-path = ["."]\n[project]\nname = "{name}"\nversion = "{version}"\n',
        "backend.py": backend,
        "PKG-INFO": f"Metadata-Version: 2.2\nName: {name}\nVersion: {version}\n",
    }
    with tarfile.open(path, "w:gz") as archive:
        for file, text in files.items():
            member = tarfile.TarInfo(f"{path.name.removesuffix('.tar.gz')}/{file}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return locked(name, version, path)


def locked(name, version, path):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{name}=={version} \\\n    --hash=sha256:{digest}\n"


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """A folder of wheels; `lines` says how each is locked."""
    folder = tmp_path_factory.mktemp("wheels")
    lines = {
        "tiny 1.0": make_wheel(folder, "tiny", "1.0", ""),
        "tiny 2.0": make_wheel(folder, "tiny", "2.0", ""),
        "picky": make_wheel(folder, "picky", "1.0", "", requires=["tiny>=2"]),
        "transformers": make_wheel(folder, "transformers", "5.0", '__version__ = "5.0"'),
        "broken": make_wheel(folder, "transformers", "6.0", 'raise ImportError("no luck")'),
        "slow": make_sdist(folder, "slow", "1.0", SLOW_BACKEND),
        "auto_gptq": make_wheel(folder, "auto_gptq", "0.7.1", 'def prove(): return "it packs"'),
        "wrong": make_wheel(folder, "auto_gptq", "0.7.2", 'def prove(): raise RuntimeError("no")'),
    }
    for version in ("2.13.0", "2.13.0+cpu"):
        make_wheel(folder, "torch", version, TORCH.format(version=version))
    return folder, lines


class Checkout:
    """The miniature checkout, and what can be done with it."""

    def __init__(self, root, wheels):
        self.root = root
        self.wheels, self.lines = wheels
        (root / "src" / "folovllm" / "machine").mkdir(parents=True)
        (root / "src" / "folovllm" / "__init__.py").touch()
        (root / "src" / "folovllm" / "machine" / "memory.py").write_text(MEMORY)
        (root / "pyproject.toml").write_text(PYPROJECT)
        (root / "backend.py").write_text(textwrap.dedent(BACKEND))
        (root / "env").mkdir()
        for name in ("inside.py", "torch-cpu.txt", "torch-cuda.txt", ".env.example"):
            shutil.copy(REPOSITORY / "env" / name, root / "env" / name)
        (root / "env" / "probes.py").write_text(PROBES)
        self.lock("tiny 1.0", "transformers")
        self.lock("auto_gptq", file="auto-gptq.lock")

    def lock(self, *names, file="requirements.lock"):
        (self.root / "env" / file).write_text("".join(self.lines[name] for name in names))

    @staticmethod
    def make_fake_uv(folder, pinned):
        make_wheel(folder, *pinned.split("=="), "", script=FAKE_UV)

    def start(self, *arguments, **variables):
        """Start the set-up in a process group of its own."""
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_"))}
        pip = {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "SLOW_STARTED": str(self.slow_started),
            # All environments have one pip, which is compiled once: half of the time.
            "VIRTUALENV_SYMLINK_APP_DATA": "1",
        }
        return subprocess.Popen(
            [sys.executable, "-c", SET_UP, str(REPOSITORY), *arguments],
            cwd=self.root,
            env={k: v for k, v in {**mine, **pip, **variables}.items() if v is not None},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def set_up(self, *arguments, **variables):
        """Run the set-up; return its exit code and all that it printed."""
        process = self.start(*arguments, **variables)
        out, error = process.communicate(timeout=100)
        return process.returncode, out + error

    def stop_while_installing(self, number, *, whole_group):
        """Start a set-up that gets stuck in pip, send it a signal, return its exit code."""
        self.lock("tiny 1.0", "transformers", "slow")
        return self.stop(number, whole_group=whole_group)

    def stop(self, number, *arguments, whole_group, **variables):
        """Start a set-up that gets stuck, send it a signal when it is, return its exit code."""
        self.slow_started.unlink(missing_ok=True)
        process = self.start(*arguments, **variables)
        deadline = time.monotonic() + 60
        while not self.slow_started.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(-process.pid if whole_group else process.pid, number)
        process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the build that pip left behind
        process.communicate()
        return process.returncode

    @property
    def slow_started(self):
        return self.root / "slow-started"

    @property
    def environments(self):
        return sorted(path.name for path in (self.root / ".venvs").glob("main-*"))

    @property
    def report(self):
        return json.loads((self.root / ".venvs" / "setup-report.json").read_text())

    def version_of(self, name):
        """The version of a package, as the Python of `.venv` finds it."""
        code = f"from importlib.metadata import version; import torch; print(version({name!r}))"
        command = [str(self.root / ".venv" / "bin" / "python"), "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def state(self):
        """What must not change when a set-up has nothing to do, or fails."""
        record = self.root / ".venv" / "folovllm-environment.json"
        return (self.root / ".venv").readlink(), record.stat().st_ino, record.stat().st_mtime_ns


@pytest.fixture
def new_checkout(tmp_path, wheels):
    """A checkout without an environment."""
    return Checkout(tmp_path, wheels)


@pytest.fixture(scope="session")
def shared_checkout(tmp_path_factory, wheels):
    checkout = Checkout(tmp_path_factory.mktemp("checkout"), wheels)
    code, said = checkout.set_up("--torch", "cpu")
    assert code == 0, said
    checkout.first_said, checkout.first_report = said, checkout.report
    return checkout


@pytest.fixture
def checkout(shared_checkout):
    """A checkout with an environment, whose environment must outlive the test unchanged."""
    with unchanged(shared_checkout):
        yield shared_checkout


@pytest.fixture(scope="session")
def shared_cuda_checkout(tmp_path_factory, wheels):
    checkout = Checkout(tmp_path_factory.mktemp("cuda_checkout"), wheels)
    code, said = checkout.set_up("--torch", "cuda")
    assert code == 0, said
    return checkout


@pytest.fixture
def cuda_checkout(shared_cuda_checkout):
    """The same with a CUDA build of torch that sees a Hopper GPU."""
    with unchanged(shared_cuda_checkout):
        yield shared_cuda_checkout


@contextlib.contextmanager
def unchanged(checkout):
    before = checkout.state()
    yield
    checkout.lock("tiny 1.0", "transformers")
    (checkout.root / "pyproject.toml").write_text(PYPROJECT)
    assert checkout.state() == before
    assert checkout.version_of("tiny") == "1.0"
