"""What the documentation says is so: its code runs, its links lead somewhere, its tables are new.

In a page, the `python` blocks are one program, and lines that begin with `# ->` are what it prints.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from folovllm.config import CONFIG_CLASSES, EngineConfig, RuntimeConfig
from folovllm.config.sources import secret_file_variable, variable_of

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
GENERATOR = Path("docs/generate_reference.py")
GENERATED = ("README.md", "README.zh-CN.md", "env/.env.example")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and content."""
    return re.findall(
        r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def code(page: Path, language: str) -> str:
    return "\n".join(content for kind, content in blocks(page) if kind == language)


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(
        r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )


# The Chinese README's Python is the English one's (test_readmes_are_twins), and is not run twice.
RUNNABLE = [page for page in PAGES if code(page, "python") and page != CHINESE]


@pytest.fixture
def environment(demo_model: Path) -> dict[str, str]:
    """The variables of a user who has configured nothing; the default model is there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FOLOVLLM_")}
    return {**kept, "FOLOVLLM_CACHE_DIR": str(demo_model.parent)}


def run(
    command: list[str], cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=cwd, env=env)


class TestPythonCode:
    def test_pages_have_any(self) -> None:
        assert {"README.md", "docs/learn/00_foundations.md"} <= set(map(name_of, RUNNABLE))

    @pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
    def test_prints_what_the_page_says(
        self, page: Path, environment: dict[str, str], tmp_path: Path
    ) -> None:
        program = code(page, "python")
        result = run([sys.executable, "-c", program], cwd=tmp_path, env=environment)
        assert result.returncode == 0, result.stderr
        expected = re.findall(r"^# -> (.*)$", program, re.MULTILINE)
        assert result.stdout.splitlines() == expected

    @pytest.mark.parametrize(
        "example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name
    )
    def test_examples_run(self, example: Path, environment: dict[str, str], tmp_path: Path) -> None:
        result = run([sys.executable, str(example)], cwd=tmp_path, env=environment)
        assert result.returncode == 0, result.stderr
        assert "Paris" in result.stdout


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=name_of)
def test_console_sessions(page: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """Each line shown after a command is among those that it prints; `~` and `…` are cuts."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "folovllm").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m folovllm "$@"\n')
    (tools / "folovllm").chmod(0o755)
    environment["PATH"] = f"{tools}{os.pathsep}{environment['PATH']}"
    sessions = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", code(page, "console"), re.MULTILINE)
    assert len(sessions) >= 4
    for command, shown in sessions:
        result = run(["bash", "-c", command], cwd=tmp_path, env=environment)
        printed = [line.split() for line in (result.stdout + result.stderr).splitlines()]
        for line in shown.splitlines():
            if line and "~" not in line and line != "…":
                assert line.split() in printed, f"{command} prints no line {line!r}"


class TestReference:
    def test_is_new(self) -> None:
        result = run([sys.executable, str(ROOT / GENERATOR), "--check"])
        assert (result.returncode, result.stderr) == (0, "")

    @pytest.fixture
    def checkout(self, tmp_path: Path) -> Path:
        """The generated files and their generator, to be damaged."""
        for name in (*GENERATED, GENERATOR, "docs/configuration.zh-CN.json"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / name)
        return tmp_path

    @pytest.mark.parametrize("name", GENERATED)
    def test_stale_file_is_named_and_mended(self, checkout: Path, name: str) -> None:
        path = checkout / name
        whole = path.read_text(encoding="utf-8")
        stale = re.sub(r"(FOLOVLLM_BLOCK_SIZE\W+)16", r"\g<1>17", whole)
        path.write_text(stale, encoding="utf-8")
        generate = [sys.executable, str(checkout / GENERATOR)]

        result = run([*generate, "--check"])
        assert (result.returncode, result.stderr) == (1, f"{name} is stale: run `nox -s docs`\n")
        assert run(generate).returncode == 0
        assert path.read_text(encoding="utf-8") == whole

    def test_missing_translation_is_named(self, checkout: Path) -> None:
        path = checkout / "docs/configuration.zh-CN.json"
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("Tokens in a block", "Bytes in a block"), encoding="utf-8")
        result = run([sys.executable, str(checkout / GENERATOR)])
        assert result.returncode == 1
        assert "has no translation of 'Tokens in a block of the KV cache; unset" in result.stderr

    def test_page_without_markers_is_named(self, checkout: Path) -> None:
        (checkout / "README.md").write_text("# Nothing\n")
        result = run([sys.executable, str(checkout / GENERATOR), "--check"])
        assert result.returncode == 1
        assert "README.md lacks <!-- configuration:begin -->" in result.stderr


class TestEnvExample:
    TEXT = (ROOT / "env/.env.example").read_text(encoding="utf-8")

    def test_sets_nothing(self) -> None:
        assert all(line.startswith("#") for line in self.TEXT.splitlines() if line)

    def test_has_every_variable_once(self) -> None:
        names = re.findall(r"^#(FOLOVLLM_\w+)=", self.TEXT, re.MULTILINE)
        fields = {name for cls in CONFIG_CLASSES for name in cls.model_fields}
        known = {variable_of(name) for name in fields} | {
            secret_file_variable(name) for name in ("hf_token", "bench_api_key")
        }
        assert sorted(names) == sorted(known - {"FOLOVLLM_ENV_FILE"})  # which names the file

    def test_values_are_the_defaults(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in os.environ if name.startswith("FOLOVLLM_")]:
            monkeypatch.delenv(name)
        monkeypatch.chdir(tmp_path)
        parts = ("model_config", "cache_config", "scheduler_config")

        def values() -> list[dict[str, object]]:
            engine = EngineConfig.from_options(model="any")
            settings = [*(getattr(engine, part) for part in parts), RuntimeConfig()]
            return [each.model_dump() for each in settings]

        defaults = values()
        uncommented = re.sub(r"^#(FOLOVLLM_\w+=.+)$", r"\1", self.TEXT, flags=re.MULTILINE)
        (tmp_path / ".env").write_text(uncommented, encoding="utf-8")
        assert values() == defaults
        (tmp_path / ".env").write_text("FOLOVLLM_BLOCK_SIZE=32\n")
        assert values() != defaults


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", prose(target), re.MULTILINE)
            assert anchor in map(slug, headings), f"{link}: no such heading"


def test_readmes_are_twins() -> None:
    """The same headings, tables and code; comments and diagrams are translated."""

    def levels(page: Path) -> list[str]:
        return re.findall(r"^(#+) ", prose(page), re.MULTILINE)

    def commands(page: Path) -> list[tuple[str, str]]:
        return [
            (kind, re.sub(r" +#.*", "", content) if kind == "bash" else content)
            for kind, content in blocks(page)
            if kind != "mermaid"
        ]

    def rows(page: Path) -> int:
        return len(re.findall(r"^\|", prose(page), re.MULTILINE))

    assert levels(ENGLISH) == levels(CHINESE)
    assert commands(ENGLISH) == commands(CHINESE)
    assert len(blocks(ENGLISH)) == len(blocks(CHINESE))
    assert rows(ENGLISH) == rows(CHINESE)


def test_sessions_exist() -> None:
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    sessions = set(re.findall(r"^def ([a-z]\w*)\(session\b", noxfile, re.MULTILINE))
    for page in PAGES:
        mentioned = set(re.findall(r"nox -s (\w+)", page.read_text(encoding="utf-8")))
        assert mentioned <= sessions, f"{name_of(page)} mentions {mentioned - sessions}"
    for readme in (ENGLISH, CHINESE):
        listed = set(re.findall(r"^\| `nox -s (\w+)`", prose(readme), re.MULTILINE))
        assert listed == sessions
