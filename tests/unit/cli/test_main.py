"""The command line, in this process where that is enough and as a process where it is not.

What needs a model is in `tests/integration/test_commands.py`.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import folovllm
from folovllm.cli.main import main
from folovllm.config import CONFIG_CLASSES, ENGINE_CLASSES, settings

COMMANDS = ("config", "verify", "demo", "generate", "chat")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """No variable of ours, an empty working directory, a cache folder of its own."""
    for name in list(os.environ):
        if name.upper().startswith("FOLOVLLM_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FOLOVLLM_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    settings._warn_once.cache_clear()


@pytest.fixture(autouse=True)
def keep_logging():
    """Commands set up the logger of the package."""
    logger = logging.getLogger("folovllm")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def command(*arguments):
    return [sys.executable, "-m", "folovllm", *arguments]


def run(*arguments, **options):
    """Run a command as a process; its output as text."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=60, check=False, **options
    )


def code_of(*arguments):
    """The exit code of `main`, also when argparse leaves by itself."""
    try:
        return main(arguments)
    except SystemExit as leaving:
        return leaving.code


# Help and version


@pytest.mark.parametrize(
    "arguments",
    [("--help",), *((name, "--help") for name in COMMANDS), ("bench", "load", "--help")],
)
def test_help(arguments, capsys):
    assert code_of(*arguments) == 0
    output = capsys.readouterr().out
    assert output.startswith("usage: folovllm")
    for name in COMMANDS if arguments == ("--help",) else ("FOLOVLLM_MODEL", "--block-size"):
        assert name in output


def test_help_names_every_engine_field_once(capsys):
    code_of("config", "--help")
    options = capsys.readouterr().out.partition("options:")[2]
    for cls in ENGINE_CLASSES.values():
        for name in cls.model_fields:
            assert options.count(f"[FOLOVLLM_{name.upper()}]") == 1, name


def test_help_of_a_benchmark_has_the_options_of_all(capsys):
    code_of("bench", "load", "--help")
    output = capsys.readouterr().out
    for name in ("rounds", "json", "html"):
        assert f"--{name} VALUE" in output
        assert f"[FOLOVLLM_BENCH_{name.upper()}]" in output


def test_help_is_shown_whatever_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("FOLOVLLM_BLOK_SIZE", "1")
    assert code_of("--help") == 0


def test_version(capsys):
    assert code_of("--version") == 0
    assert capsys.readouterr().out == f"folovllm {folovllm.__version__}\n"


def test_as_a_module():
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"folovllm {folovllm.__version__}\n"


@pytest.mark.parametrize(
    "code",
    [
        "import folovllm; dir(folovllm)",
        "from folovllm import EngineConfig, SamplingParams, Request, RequestOutput, ModelLoader",
        "from folovllm import EngineConfig; EngineConfig.from_options(model='m', dtype='half')",
        "import folovllm.cli.main as m\ntry: m.main(['--help'])\nexcept SystemExit: pass",
        "import folovllm.cli.main as m\ntry: m.main(['demo', '--help'])\nexcept SystemExit: pass",
        "import folovllm.cli.main as m\ntry: m.main(['chat', '--help'])\nexcept SystemExit: pass",
        (
            "from folovllm.cli.main import main\ntry: main(['bench', 'load', '--help'])\n"
            "except SystemExit: pass"
        ),
        "import folovllm.cli.main as m; m.main(['config'])",
        "import folovllm.diagnostics.verify",  # its checks say what cannot be imported
    ],
)
def test_nothing_heavy_is_imported(code):
    heavy = "{'torch', 'transformers', 'numpy', 'safetensors', 'huggingface_hub'}"
    code += f"\nimport sys; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# Wrong usage


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "COMMAND"),
        (("serv",), "'serv'"),
        (("config", "--colour"), "--colour"),
        (("bench",), "BENCHMARK"),
        (("bench", "loud"), "'loud'"),
        (("bench", "load", "--round", "2"), "--round"),
        (("config", "--dtyp", "half"), "--dtyp"),  # abbreviations would change their meaning
        (("config", "--block-size"), "--block-size"),
        (("config", "extra"), "extra"),
        (("config", "--enable-prefix-caching=maybe"), "maybe"),
    ],
)
def test_wrong_usage(arguments, complaint, capsys):
    assert code_of(*arguments) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.out == ""


# config


def test_config_as_text(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FOLOVLLM_MAX_NUM_SEQS", "8")
    Path(".env").write_text("# mine\nFOLOVLLM_DTYPE=bfloat16\nOTHER=1\n")
    assert main(["config", "--block-size", "32", "--enable-prefix-caching"]) == 0
    captured = capsys.readouterr()
    lines = [line.split() for line in captured.out.splitlines()]
    assert [line for line in captured.out.splitlines() if not line.startswith(" ")] == [
        "ModelConfig",
        "CacheConfig",
        "SchedulerConfig",
        "RuntimeConfig",
        "BenchConfig",
        "LatencyConfig",
        "RequestsConfig",
        "ThroughputConfig",
        "SweepConfig",
    ]
    demo = str(tmp_path / "cache" / "SmolLM2-135M-Instruct-v2")
    assert ["model", demo, "default", "(SmolLM2-135M-Instruct)"] in lines
    assert ["dtype", "bfloat16", ".env:2", "FOLOVLLM_DTYPE"] in lines
    assert ["block_size", "32", "argument", "--block-size"] in lines
    assert ["enable_prefix_caching", "True", "argument", "--enable-prefix-caching"] in lines
    assert ["max_num_seqs", "8", "variable", "FOLOVLLM_MAX_NUM_SEQS"] in lines
    assert ["seed", "0", "default"] in lines
    assert captured.err == ""
    assert not (tmp_path / "cache").exists()  # looking makes nothing


def test_config_as_json(monkeypatch, capsys):
    monkeypatch.setenv("FOLOVLLM_HF_TOKEN", "hf_secret")
    assert main(["config", "--json", "--model", "m", "--max-model-len", "9"]) == 0
    output = capsys.readouterr().out
    content = json.loads(output)
    assert "hf_secret" not in output
    assert list(content) == ["schema", "config"]
    assert content["schema"] == 1
    config = content["config"]
    assert {name: list(fields) for name, fields in config.items()} == {
        cls.__name__: list(cls.model_fields) for cls in CONFIG_CLASSES
    }
    assert config["ModelConfig"]["hf_token"] == {
        "value": "********",
        "origin": "variable FOLOVLLM_HF_TOKEN",
        "variable": "FOLOVLLM_HF_TOKEN",
    }
    assert config["ModelConfig"]["model"]["origin"] == "argument --model"
    assert config["ModelConfig"]["tokenizer"] == {
        "value": "m",
        "origin": "default",
        "variable": "FOLOVLLM_TOKENIZER",
    }
    for part in ("ModelConfig", "SchedulerConfig"):
        assert config[part]["max_model_len"] == {
            "value": 9,
            "origin": "argument --max-model-len",
            "variable": "FOLOVLLM_MAX_MODEL_LEN",
        }
    assert config["CacheConfig"]["swap_space"]["value"] == 4.0
    assert config["CacheConfig"]["enable_prefix_caching"]["value"] is True
    assert config["RuntimeConfig"]["env_file"]["value"] == ".env"


def test_config_beats_variables_with_arguments(monkeypatch, capsys):
    monkeypatch.setenv("FOLOVLLM_ENABLE_PREFIX_CACHING", "1")
    assert main(["config", "--json", "--no-enable-prefix-caching"]) == 0
    rows = json.loads(capsys.readouterr().out)["config"]
    assert rows["CacheConfig"]["enable_prefix_caching"]["value"] is False


def test_config_in_a_bare_environment(tmp_path):
    """What a container does: only PATH, HOME and our variables."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "FOLOVLLM_MODEL": "/models/m",
        "FOLOVLLM_DTYPE": "bfloat16",
    }
    done = run("config", env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["model", "/models/m", "variable", "FOLOVLLM_MODEL"] in lines
    assert ["dtype", "bfloat16", "variable", "FOLOVLLM_DTYPE"] in lines


# Bad input


BAD_INPUT = {
    "dtype": ({"FOLOVLLM_DTYPE": "float17"}, ["dtype", "float17", "bfloat16", "FOLOVLLM_DTYPE"]),
    "typo": ({"FOLOVLLM_BLOK_SIZE": "16"}, ["FOLOVLLM_BLOK_SIZE", "FOLOVLLM_BLOCK_SIZE"]),
    "unknown and empty": ({"FOLOVLLM_PORT": ""}, ["FOLOVLLM_PORT"]),
    "empty": ({"FOLOVLLM_BLOCK_SIZE": ""}, ["FOLOVLLM_BLOCK_SIZE", "empty"]),
    "range": ({"FOLOVLLM_SWAP_SPACE": "-1"}, ["swap_space", "'-1'", ">= 0"]),
    "log level": ({"FOLOVLLM_LOG_LEVEL": "LOUD"}, ["log_level", "'LOUD'", "'INFO'"]),
    "env file": ({"FOLOVLLM_ENV_FILE": "/nowhere/.env"}, ["FOLOVLLM_ENV_FILE", "/nowhere/.env"]),
    "secret file": ({"FOLOVLLM_HF_TOKEN_FILE": "/nowhere"}, ["FOLOVLLM_HF_TOKEN_FILE"]),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("bad", BAD_INPUT)
def test_bad_variables_stop_each_command(bad, name, monkeypatch, capsys):
    variables, parts = BAD_INPUT[bad]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert main([name, "Hi"] if name == "generate" else [name]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("folovllm: ")
    assert captured.out == ""
    for part in parts:
        assert part in captured.err


def test_bad_variables_as_a_process(monkeypatch):
    monkeypatch.setenv("FOLOVLLM_DTYPE", "float17")
    done = run("verify")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("folovllm: dtype: got 'float17' from variable FOLOVLLM_DTYPE; accepted")


@pytest.mark.parametrize(
    ("option", "value", "parts"),
    [
        ("--block-size", "0", ["block_size", "'0'", "> 0"]),
        ("--dtype", "float17", ["dtype", "'float17'"]),
        ("--model", "", ["model", "''"]),
        ("--tokenizer", "", ["tokenizer", "''"]),
        ("--policy", "lifo", ["policy", "'lifo'", "fcfs"]),
    ],
)
def test_bad_arguments(option, value, parts, capsys):
    assert main(["config", option, value]) == 2
    message = capsys.readouterr().err
    assert all(part in message for part in parts)


def test_env_file_with_foreign_keys_and_odd_lines(capsys):
    Path(".env").write_text("DATABASE_URL=x\nan odd line\nPORT=\n")
    assert main(["config"]) == 0
    assert capsys.readouterr().err == ""


def test_env_file_with_a_typo(capsys):
    Path(".env").write_text("A=1\n\nFOLOVLLM_BLOK_SIZE=1\n")
    assert main(["config"]) == 2
    assert ".env:3 FOLOVLLM_BLOK_SIZE" in capsys.readouterr().err


def test_allow_unknown_warns_once_in_the_logs_format(monkeypatch, capsys):
    monkeypatch.setenv("FOLOVLLM_BLOK_SIZE", "1")
    monkeypatch.setenv("FOLOVLLM_ALLOW_UNKNOWN", "1")
    assert main(["config"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert " WARNING " in line
    assert "FOLOVLLM_BLOK_SIZE" in line


def test_an_unwritable_report_is_refused_before_the_work(capsys, monkeypatch, tmp_path):
    for path in (tmp_path / "missing" / "report.json", tmp_path):
        assert main(["verify", "--json", str(path)]) == 2
        captured = capsys.readouterr()
        assert f"--json {path} cannot be written" in captured.err
        assert captured.out == ""
    assert not (tmp_path / "cache").exists()


def test_the_writable_check_leaves_no_file(tmp_path, monkeypatch, capsys):
    old = tmp_path / "old.json"
    old.write_text("old")
    monkeypatch.setenv("FOLOVLLM_DTYPE", "float17")
    for path in (old, tmp_path / "new.json"):
        assert main(["verify", "--json", str(path)]) == 2
    assert old.read_text() == "old"
    assert not (tmp_path / "new.json").exists()


# Output that goes nowhere


@pytest.mark.parametrize("arguments", [("config",), ("config", "--help"), ("--version",)])
def test_a_closed_pipe_is_no_error_to_show(arguments):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as output:
        process = subprocess.Popen(command(*arguments), stdout=output, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 1)
    assert errors == b""


def test_a_pipe_into_head():
    line = f"{sys.executable} -m folovllm config | head -n 1"
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ModelConfig\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [("config",), ("config", "--json")])
def test_a_full_disk(arguments):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        process = subprocess.Popen(
            command(*arguments), stdout=full, stderr=subprocess.PIPE, text=True
        )
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == "folovllm: the disk is full: the output could not be written\n"


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closing):
    line = f"{sys.executable} -m folovllm config {closing}"
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# Ctrl-C


def test_ctrl_c_in_a_command(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("folovllm.cli.config.planned_config", interrupted)
    assert main(["config"]) == 130
    assert capsys.readouterr().err == "folovllm: interrupted\n"


# Starts the command line as the `folovllm` script does, and says when `main` was entered; before
# that only Python itself and `folovllm/__init__.py` ran, and no code of ours can catch anything.
STARTER = """
import signal, sys
import folovllm.cli.main as cli
# Whoever runs these tests in the background of a shell has the signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

def started(argv, inner=cli._main):
    sys.stderr.write("started\\n")
    sys.stderr.flush()
    return inner(argv)

cli._main = started
sys.exit(cli.main())
"""


@pytest.mark.parametrize("name", ["--help", "config", "verify"])
@pytest.mark.parametrize("delay", [0, 0.01, 0.05, 0.1, 0.2, 0.5, 1])
def test_ctrl_c_at_any_moment(name, delay, monkeypatch, tmp_path):
    monkeypatch.setenv("FOLOVLLM_MODEL", str(tmp_path / "nowhere"))
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr.readline() == "started\n"
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    if process.returncode in (0, 1):  # it was done already; there is no model to verify
        assert process.returncode == (name == "verify")
        assert errors == ""
    elif process.returncode != -signal.SIGINT:  # which a shell shows as 130 too
        assert process.returncode == 130
        assert errors.splitlines()[-1] == "folovllm: interrupted"


def test_little_is_imported_before_ctrl_c_can_be_caught():
    code = (
        "import sys, importlib; before = set(sys.modules); "
        "import folovllm.cli.main; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["folovllm", "folovllm.cli", "folovllm.cli.main"]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [("KeyboardInterrupt", 130, "folovllm: interrupted\n"), ("ValueError", 0, "Exception ignored")],
)
def test_ctrl_c_where_python_cannot_raise_it(error, code, message):
    """Python would print a traceback and go on."""
    program = f"""
import sys, weakref
from folovllm.cli import main as module

class Thing:
    pass

def callback(_):
    raise {error}

def run(argv):
    thing = Thing()
    reference = weakref.ref(thing, callback)
    print("before")
    del thing
    return 0

module._main = run
sys.exit(module.main([]))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == code
    assert run.stdout == "before\n"
    assert run.stderr.startswith(message)
    assert ("Traceback" in run.stderr) == (code == 0)
