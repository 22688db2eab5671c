import copy
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

import folovllm
from folovllm.config import (
    CONFIG_CLASSES,
    DTYPES,
    CacheConfig,
    EngineConfig,
    ModelConfig,
    RuntimeConfig,
    SchedulerConfig,
    settings,
)
from folovllm.config.settings import check_variables, public_value
from folovllm.config.sources import read_environment
from folovllm.errors import ConfigError

try:
    import torch
except ImportError:  # the configuration itself needs none
    torch = None  # type: ignore[assignment]

needs_torch = pytest.mark.skipif(torch is None, reason="needs torch")
SECRET = "hf_AbCdEfGh123"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """No variable of ours, and no `.env` but the test's own."""
    for name in list(os.environ):
        if name.upper().startswith("FOLOVLLM_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    settings._warn_once.cache_clear()


def env_file(text, name=".env"):
    Path(name).write_text(text, encoding="utf-8")


def refusal(call, *args, **kwargs):
    """The message with which a call is refused."""
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# Defaults


DEFAULTS = {
    ModelConfig: {
        "tokenizer": "m",
        "tokenizer_mode": "auto",
        "trust_remote_code": False,
        "dtype": "auto",
        "max_model_len": None,
        "seed": 0,
        "attention_backend": None,
        "linear_backend": None,
        "quantization": None,
        "enforce_eager": False,
        "revision": None,
        "hf_token": None,
    },
    CacheConfig: {
        "block_size": 16,
        "gpu_memory_utilization": 0.9,
        "cpu_kvcache_space": None,
        "num_gpu_blocks_override": None,
        "swap_space": 4.0,
        "enable_prefix_caching": True,
    },
    SchedulerConfig: {
        "max_num_batched_tokens": None,
        "max_num_seqs": 256,
        "max_model_len": None,
        "enable_chunked_prefill": True,
        "policy": "fcfs",
    },
}


@pytest.mark.parametrize("cls", DEFAULTS, ids=lambda cls: cls.__name__)
def test_defaults(cls):
    required = {"model": "m"} if cls is ModelConfig else {}
    assert cls(**required).model_dump() == required | DEFAULTS[cls]


def test_runtime_defaults():
    config = RuntimeConfig()
    assert config.env_file == Path(".env")
    assert config.allow_unknown is False
    assert config.cache_dir.name == "folovllm"
    assert config.log_level == "INFO"


def test_model_is_required_and_the_message_says_how():
    message = refusal(ModelConfig)
    assert "model is required" in message
    assert "FOLOVLLM_MODEL" in message


def test_tokenizer_of_its_own():
    assert ModelConfig(model="m", tokenizer="t").tokenizer == "t"


def test_every_class_is_exported():
    for name in ("ModelConfig", "CacheConfig", "SchedulerConfig", "EngineConfig"):
        assert getattr(folovllm, name).__name__ == name


def test_every_field_has_a_description_and_a_variable_of_its_own():
    seen = {}
    for cls in CONFIG_CLASSES:
        for name, field in cls.model_fields.items():
            assert field.description, name
            seen.setdefault(name, []).append(cls.__name__)
    shared = {name: classes for name, classes in seen.items() if len(classes) > 1}
    assert shared == {"max_model_len": ["ModelConfig", "SchedulerConfig"]}


# Accepted and refused values


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [
        (CacheConfig, "gpu_memory_utilization", 1),
        (CacheConfig, "gpu_memory_utilization", 1e-9),
        (CacheConfig, "swap_space", 0),
        (CacheConfig, "block_size", 1),
        (CacheConfig, "enable_prefix_caching", False),
        (ModelConfig, "max_model_len", 1),
        (ModelConfig, "max_model_len", None),
        (ModelConfig, "seed", 2**64 - 1),
        (ModelConfig, "tokenizer_mode", "slow"),
        (ModelConfig, "trust_remote_code", True),
        (ModelConfig, "revision", "main"),
        (SchedulerConfig, "policy", "priority"),
        (SchedulerConfig, "max_num_batched_tokens", 1),
        (SchedulerConfig, "max_num_seqs", 1),
        (SchedulerConfig, "enable_chunked_prefill", False),
    ],
)
def test_accepted(cls, field, value):
    required = {"model": "m"} if cls is ModelConfig else {}
    assert getattr(cls(**required, **{field: value}), field) == value


REFUSED = [
    (CacheConfig, "block_size", "0", "> 0"),
    (CacheConfig, "block_size", "-16", "> 0"),
    (CacheConfig, "block_size", "abc", "> 0"),
    (CacheConfig, "block_size", str(10**9), "> 0 and <= 1048576"),
    (CacheConfig, "num_gpu_blocks_override", str(10**10), "> 0 and <= 2147483647"),
    (CacheConfig, "num_gpu_blocks_override", str(10**30), "> 0 and <= 2147483647"),
    (CacheConfig, "cpu_kvcache_space", "1e300", "> 0 and <= 1048576"),
    (CacheConfig, "swap_space", "1e300", ">= 0 and <= 1048576"),
    (ModelConfig, "max_model_len", str(10**18), "> 0 and <= 2147483647"),
    (SchedulerConfig, "max_num_batched_tokens", str(10**18), "> 0 and <= 2147483647"),
    (SchedulerConfig, "max_num_seqs", str(10**9), "> 0 and <= 1048576"),
    (CacheConfig, "block_size", "1.5", "> 0"),
    (CacheConfig, "gpu_memory_utilization", "0", "> 0 and <= 1"),
    (CacheConfig, "gpu_memory_utilization", "1.01", "> 0 and <= 1"),
    (CacheConfig, "gpu_memory_utilization", "nan", "> 0 and <= 1"),
    (CacheConfig, "gpu_memory_utilization", "most", "> 0 and <= 1"),
    (CacheConfig, "swap_space", "-1", ">= 0"),
    (CacheConfig, "swap_space", "inf", ">= 0"),
    (CacheConfig, "enable_prefix_caching", "perhaps", "boolean"),
    (ModelConfig, "tokenizer_mode", "fast", "'auto' or 'slow'"),
    (ModelConfig, "trust_remote_code", "maybe", "boolean"),
    (ModelConfig, "dtype", "float17", "bfloat16"),
    (ModelConfig, "dtype", "int8", "bfloat16"),
    (ModelConfig, "max_model_len", "0", "> 0"),
    (ModelConfig, "max_model_len", "long", "> 0"),
    (ModelConfig, "seed", "-1", ">= 0"),
    (ModelConfig, "seed", str(2**64), f"< {2**64}"),
    (SchedulerConfig, "max_num_batched_tokens", "0", "> 0"),
    (SchedulerConfig, "max_num_seqs", "0", "> 0"),
    (SchedulerConfig, "max_model_len", "-1", "> 0"),
    (SchedulerConfig, "enable_chunked_prefill", "2", "boolean"),
    (SchedulerConfig, "policy", "lifo", "'fcfs' or 'priority'"),
    (RuntimeConfig, "log_level", "LOUD", "'INFO'"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[1]}={case[2]}")
@pytest.mark.parametrize("source", ["argument", "variable", ".env"])
def test_refused_with_field_value_range_and_origin(source, case, monkeypatch):
    cls, field, value, accepted = case
    required = {"model": "m"} if cls is ModelConfig else {}
    variable = f"FOLOVLLM_{field.upper()}"
    if source == "argument":
        message = refusal(cls, **required, **{field: value})
        assert variable not in message
    elif source == "variable":
        monkeypatch.setenv(variable, value)
        message = refusal(cls, **required)
        assert f"from variable {variable}" in message
    else:
        env_file(f"# mine\n{variable}={value}\n")
        message = refusal(cls, **required)
        assert f"from .env:2 {variable}" in message
    assert message.startswith(f"{field}: ")
    assert repr(value) in message
    assert accepted in message


def test_the_refused_argument_does_not_name_the_variable_it_replaces(monkeypatch):
    monkeypatch.setenv("FOLOVLLM_BLOCK_SIZE", "32")
    message = refusal(CacheConfig, block_size=0)
    assert "got 0;" in message
    assert "FOLOVLLM_BLOCK_SIZE" not in message


def test_every_wrong_value_is_named_at_once(monkeypatch):
    monkeypatch.setenv("FOLOVLLM_SWAP_SPACE", "-1")
    assert [line.split(":")[0] for line in refusal(CacheConfig, block_size=0).splitlines()] == [
        "block_size",
        "swap_space",
    ]


@pytest.mark.parametrize("field", ["model", "tokenizer", "revision"])
def test_empty_arguments_are_refused(field):
    assert f"{field}: got ''" in refusal(ModelConfig, **{"model": "m", field: ""})


def test_unknown_arguments_are_refused_with_the_nearest_name():
    assert refusal(CacheConfig, blok_size=1) == (
        "CacheConfig has no field 'blok_size'; did you mean block_size?"
    )
    assert refusal(CacheConfig, colour="red") == "CacheConfig has no field 'colour'"


def test_a_refusal_is_a_value_error_without_pydantics_text():
    with pytest.raises(ValueError, match="block_size") as caught:
        CacheConfig(block_size=0)
    assert not isinstance(caught.value, ValidationError)
    assert "pydantic" not in str(caught.value)


# dtype


@needs_torch
@pytest.mark.parametrize(("name", "expected"), DTYPES.items())
def test_torch_dtype_of_names(name, expected):
    wanted = getattr(torch, expected) if expected else None
    assert ModelConfig(model="m", dtype=name).torch_dtype is wanted


@needs_torch
def test_torch_dtype_of_dtypes():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.half, torch.float):
        config = ModelConfig(model="m", dtype=dtype)
        assert config.dtype is dtype
        assert config.torch_dtype is dtype


@needs_torch
@pytest.mark.parametrize("name", ["float64", "int8", "bool", "complex64"])
def test_other_torch_dtypes_are_refused(name):
    message = refusal(ModelConfig, model="m", dtype=getattr(torch, name))
    assert f"torch.{name}" in message
    assert "bfloat16" in message


@pytest.mark.parametrize("value", [None, 16, "", "FLOAT16", "torch.float16", b"half", float])
def test_other_dtypes_are_refused(value):
    assert "dtype: got" in refusal(ModelConfig, model="m", dtype=value)


def numbers(schema):
    """The parts of a field's schema that take numbers."""
    parts = [schema, *schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else [])]
    nested = [each for part in parts[1:] for each in numbers(part)]
    return [part for part in parts[:1] if part.get("type") in {"integer", "number"}] + nested


def test_every_number_has_two_limits():
    count = 0
    for cls in CONFIG_CLASSES:
        for name, schema in cls.model_json_schema()["properties"].items():
            for part in numbers(schema):
                lower = {"minimum", "exclusiveMinimum"} & part.keys()
                upper = {"maximum", "exclusiveMaximum"} & part.keys()
                assert (len(lower), len(upper)) == (1, 1), f"{cls.__name__}.{name}: {part}"
                count += 1
    assert count > 12


# Where values come from


@given(layers=st.sets(st.sampled_from(["argument", "variable", ".env"])))
def test_the_highest_layer_wins(layers):
    values = {"argument": 1, "variable": 2, ".env": 3}
    arguments = {"block_size": 1} if "argument" in layers else {}
    with pytest.MonkeyPatch.context() as patch:
        if "variable" in layers:
            patch.setenv("FOLOVLLM_BLOCK_SIZE", "2")
        env_file("FOLOVLLM_BLOCK_SIZE=3\n" if ".env" in layers else "")
        expected = next((values[layer] for layer in values if layer in layers), 16)
        assert CacheConfig(**arguments).block_size == expected


@given(
    fields=st.dictionaries(
        st.sampled_from(["block_size", "max_num_seqs", "max_num_batched_tokens", "seed"]),
        st.dictionaries(
            st.sampled_from(["argument", "variable", ".env"]),
            st.integers(min_value=1, max_value=10**6),
            min_size=1,
        ),
    )
)
def test_each_field_has_layers_of_its_own(fields):
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        for name, layers in fields.items():
            if "variable" in layers:
                patch.setenv(f"FOLOVLLM_{name.upper()}", str(layers["variable"]))
            if ".env" in layers:
                lines.append(f"FOLOVLLM_{name.upper()}={layers['.env']}\n")
        env_file("".join(lines))
        options = {n: layers["argument"] for n, layers in fields.items() if "argument" in layers}
        engine = EngineConfig.from_options(model="m", **options)
    values = {
        **engine.model_config.model_dump(),
        **engine.cache_config.model_dump(),
        **engine.scheduler_config.model_dump(),
    }
    for name, layers in fields.items():
        order = ("argument", "variable", ".env")
        assert values[name] == next(layers[layer] for layer in order if layer in layers)


def test_an_argument_of_none_is_an_argument(monkeypatch):
    monkeypatch.setenv("FOLOVLLM_MAX_MODEL_LEN", "8")
    assert ModelConfig(model="m", max_model_len=None).max_model_len is None


def test_a_folder_called_env_is_no_env_file():
    Path(".env").mkdir()
    assert CacheConfig().block_size == 16


def test_another_env_file(monkeypatch):
    env_file("FOLOVLLM_BLOCK_SIZE=8\n")
    env_file("FOLOVLLM_SEED=7\n", "other.env")
    monkeypatch.setenv("FOLOVLLM_ENV_FILE", "other.env")
    config = ModelConfig(model="m")
    assert config.seed == 7
    assert CacheConfig().block_size == 16
    assert ModelConfig.find_in_environment()["seed"].origin == "other.env:1 FOLOVLLM_SEED"


def test_another_env_file_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    env_file("FOLOVLLM_BLOCK_SIZE=8\n", "my.env")
    monkeypatch.setenv("FOLOVLLM_ENV_FILE", "~/my.env")
    assert CacheConfig().block_size == 8


def test_no_env_file_at_all(monkeypatch):
    env_file("FOLOVLLM_BLOCK_SIZE=8\n")
    monkeypatch.setenv("FOLOVLLM_ENV_FILE", os.devnull)
    assert CacheConfig().block_size == 16


@pytest.mark.parametrize("name", ["missing.env", "."])
def test_an_env_file_that_cannot_be_read(name, monkeypatch):
    monkeypatch.setenv("FOLOVLLM_ENV_FILE", name)
    message = refusal(CacheConfig)
    assert "FOLOVLLM_ENV_FILE" in message
    assert f"names {name}" in message


def test_an_env_file_without_a_name(monkeypatch):
    monkeypatch.setenv("FOLOVLLM_ENV_FILE", "")
    assert "FOLOVLLM_ENV_FILE is set but empty" in refusal(CacheConfig)


def test_an_env_file_of_bytes():
    Path(".env").write_bytes(b"FOLOVLLM_SEED=\xff\n")
    assert ".env cannot be read" in refusal(CacheConfig)


def test_the_env_file_cannot_name_another():
    env_file("\nFOLOVLLM_ENV_FILE=other.env\n")
    assert ".env:2 FOLOVLLM_ENV_FILE" in refusal(CacheConfig)


# What a `.env` line may look like


@pytest.mark.parametrize(
    ("text", "value", "line"),
    [
        ("FOLOVLLM_MODEL=m", "m", 1),
        ("\n\n\nFOLOVLLM_MODEL=m\n", "m", 4),
        ("\n  \n\t\nFOLOVLLM_MODEL=m\n", "m", 4),
        ("# comment\n\n# another\nFOLOVLLM_MODEL=m\n", "m", 4),
        ("  FOLOVLLM_MODEL=m", "m", 1),
        ("FOLOVLLM_MODEL = m", "m", 1),
        ("export FOLOVLLM_MODEL=m", "m", 1),
        ("FOLOVLLM_MODEL=m # the model", "m", 1),
        ("FOLOVLLM_MODEL='a b'", "a b", 1),
        ('FOLOVLLM_MODEL="a b" # quoted', "a b", 1),
        ("FOLOVLLM_MODEL='#1'", "#1", 1),
        ("FOLOVLLM_MODEL=/a/b=c", "/a/b=c", 1),
        ('A="one\ntwo\nthree"\nFOLOVLLM_MODEL=m', "m", 4),
        ('A="\n\nFOLOVLLM_SEED=1\n"\n\nFOLOVLLM_MODEL=m', "m", 6),
        ('FOLOVLLM_MODEL="a\nb"\n', "a\nb", 1),
        ("FOLOVLLM_MODEL=old\nFOLOVLLM_MODEL=new\n", "new", 2),
        ("folovllm_model=m", "m", 1),
        ("\r\nA=1\r\nFOLOVLLM_MODEL=m\r\n", "m", 3),
        ("A=x\nFOLOVLLM_MODEL=${A}/y\n", "x/y", 2),
        ("'FOLOVLLM_MODEL'=m", "m", 1),
        ("not a line\nFOLOVLLM_MODEL=m", "m", 2),
        ("\ufeffFOLOVLLM_MODEL=m", "m", 1),
        ("FOLOVLLM_MODEL=模型", "模型", 1),
    ],
)
def test_env_file_lines(text, value, line):
    Path(".env").write_bytes(text.encode())
    found = ModelConfig.find_in_environment()["model"]
    assert found.value == value
    assert found.origin == f".env:{line} {found.variable}"
    assert found.variable.upper() == "FOLOVLLM_MODEL"
    assert ModelConfig().model == value
    assert "seed" not in ModelConfig.find_in_environment()


@given(blanks=st.lists(st.sampled_from(["", "  ", "# c", "A=1", "\t", "export B='x'"])))
def test_the_line_is_that_of_the_text(blanks):
    lines = [*blanks, "FOLOVLLM_SEED=5", "C=2"]
    env_file("\n".join(lines))
    assert read_environment()["FOLOVLLM_SEED"].line == len(blanks) + 1


def test_foreign_keys_are_left_alone(caplog):
    env_file("DATABASE_URL=x\nVLLM_SEED=3\nMY_FOLOVLLM_SEED=4\nan odd line\nB='open\n")
    check_variables(CONFIG_CLASSES)
    assert EngineConfig(model_config=ModelConfig(model="m")).model_config.seed == 0
    assert not caplog.records


@pytest.mark.parametrize(
    "line",
    ["FOLOVLLM_SEED='1", 'FOLOVLLM_SEED="1', "export FOLOVLLM_SEED='1' 2", "folovllm_SEED 1"],
)
def test_a_line_of_ours_that_cannot_be_read_is_refused(line):
    env_file(f"\nA=1\n\n{line}\n")
    message = refusal(CacheConfig)
    assert message.startswith(".env:4 ")
    assert "FOLOVLLM_SEED" in message.upper()


def test_a_typo_in_the_env_file_is_refused_with_its_line():
    env_file("\n# c\nFOLOVLLM_BLOK_SIZE=8\n")
    message = refusal(EngineConfig, model_config=ModelConfig(model="m"))
    assert ".env:3 FOLOVLLM_BLOK_SIZE" in message
    assert "did you mean FOLOVLLM_BLOCK_SIZE?" in message


# Variables


def test_names_are_compared_without_regard_to_case(monkeypatch):
    monkeypatch.setenv("folovllm_dtype", "float17")
    assert "from variable folovllm_dtype" in refusal(ModelConfig, model="m")
    monkeypatch.setenv("FOLOVLLM_DTYPE", "half")
    assert ModelConfig(model="m").dtype == "half"


@pytest.mark.parametrize("value", ["", "  "])
@pytest.mark.parametrize("cls", CONFIG_CLASSES, ids=lambda cls: cls.__name__)
def test_empty_values_are_refused(cls, value, monkeypatch):
    for name in cls.model_fields:
        with monkeypatch.context() as patch:
            patch.setenv(f"FOLOVLLM_{name.upper()}", value)
            message = refusal(cls)
        assert message.startswith(f"{name}: variable FOLOVLLM_{name.upper()} is set but empty")


@pytest.mark.parametrize("line", ["FOLOVLLM_SEED=", "FOLOVLLM_SEED", "FOLOVLLM_SEED=''"])
def test_empty_values_of_the_env_file_are_refused(line):
    env_file(f"A=\n{line}\n")
    assert "seed: .env:2 FOLOVLLM_SEED is set but empty" in refusal(ModelConfig, model="m")


def test_booleans(monkeypatch):
    for word, value in {"1": True, "true": True, "ON": True, "no": False, "0": False}.items():
        monkeypatch.setenv("FOLOVLLM_ENABLE_PREFIX_CACHING", word)
        assert CacheConfig().enable_prefix_caching is value


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("FOLOVLLM_BLOK_SIZE", "FOLOVLLM_BLOCK_SIZE"),
        ("FOLOVLLM_MODLE", "FOLOVLLM_MODEL"),
        ("FOLOVLLM_MAX_NUM_SEQ", "FOLOVLLM_MAX_NUM_SEQS"),
        ("FOLOVLLM_HF_TOKEN_FIL", "FOLOVLLM_HF_TOKEN_FILE"),
        ("folovllm_dtyp", "FOLOVLLM_DTYPE"),
        ("FOLOVLLM_CACHEDIR", "FOLOVLLM_CACHE_DIR"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_nearest_name(typo, meant, monkeypatch):
    monkeypatch.setenv(typo, "1")
    for call in (
        lambda: check_variables(CONFIG_CLASSES),
        EngineConfig,
        lambda: EngineConfig.from_options(model="m"),
        lambda: EngineConfig(ModelConfig(model="m"), CacheConfig(), SchedulerConfig()),
    ):
        message = refusal(call)
        assert f"variable {typo} is not a variable of FoloVLLM; did you mean {meant}?" in message
        assert "FOLOVLLM_ALLOW_UNKNOWN=1" in message


def test_an_unknown_variable_like_no_other(monkeypatch):
    monkeypatch.setenv("FOLOVLLM_", "1")
    monkeypatch.setenv("FOLOVLLM_ZZZ", "1")
    message = refusal(check_variables, CONFIG_CLASSES)
    assert "did you mean" not in message
    assert len(message.splitlines()) == 3


def test_known_variables_pass(monkeypatch):
    for cls in CONFIG_CLASSES:
        for name in cls.model_fields:
            if name != "env_file":
                monkeypatch.setenv(f"FOLOVLLM_{name.upper()}", "x")
    monkeypatch.setenv("FOLOVLLM_HF_TOKEN_FILE", "x")
    check_variables(CONFIG_CLASSES)


@pytest.mark.parametrize("source", ["variable", ".env"])
def test_allow_unknown_warns_once(source, monkeypatch, caplog):
    monkeypatch.setenv("FOLOVLLM_BLOK_SIZE", "1")
    if source == ".env":
        env_file("FOLOVLLM_ALLOW_UNKNOWN=true\n")
    else:
        monkeypatch.setenv("FOLOVLLM_ALLOW_UNKNOWN", "1")
    caplog.set_level(logging.WARNING, "folovllm")
    EngineConfig.from_options(model="m")
    EngineConfig.from_options(model="m")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "did you mean FOLOVLLM_BLOCK_SIZE?" in record.getMessage()


@pytest.mark.parametrize("value", ["0", "false", "nonsense"])
def test_unknown_is_not_allowed_by_other_words(value, monkeypatch):
    monkeypatch.setenv("FOLOVLLM_BLOK_SIZE", "1")
    monkeypatch.setenv("FOLOVLLM_ALLOW_UNKNOWN", value)
    assert "FOLOVLLM_BLOK_SIZE" in refusal(EngineConfig.from_options, model="m")


# Secrets


def test_a_secret_shows_nowhere(monkeypatch):
    config = ModelConfig(model="m", hf_token=SECRET)
    engine = EngineConfig(model_config=config)
    for text in (repr(config), str(config), repr(engine), str(config.model_dump())):
        assert SECRET not in text
    assert public_value(config.hf_token) == "********"
    assert config.hf_token.get_secret_value() == SECRET


def test_a_wrong_secret_shows_in_no_error(monkeypatch):
    messages = [
        refusal(ModelConfig, model="m", hf_token=[SECRET]),
        refusal(ModelConfig, model="m", hf_tokn=SECRET),
        refusal(EngineConfig, model_config={"model": "m", "hf_token": SECRET}),
        refusal(setattr, ModelConfig(model="m"), "hf_token", [SECRET]),
    ]
    monkeypatch.setenv("FOLOVLLM_HF_TOKN", SECRET)
    messages.append(refusal(check_variables, CONFIG_CLASSES))
    monkeypatch.setenv("FOLOVLLM_HF_TOKEN", SECRET)
    messages.append(refusal(ModelConfig, model="m", dtype="x"))
    for message in messages:
        assert SECRET not in message


@pytest.mark.parametrize("ending", ["", "\n", "\r\n", "\n\n"])
def test_a_secret_from_a_file(ending, monkeypatch, tmp_path):
    (tmp_path / "token").write_bytes((SECRET + ending).encode())
    monkeypatch.setenv("FOLOVLLM_HF_TOKEN_FILE", str(tmp_path / "token"))
    assert ModelConfig(model="m").hf_token.get_secret_value() == SECRET
    origin = ModelConfig.find_in_environment()["hf_token"].origin
    assert origin == "variable FOLOVLLM_HF_TOKEN_FILE"


def test_a_secret_from_a_file_that_the_env_file_names(tmp_path):
    (tmp_path / "token").write_text(SECRET)
    env_file(f"\nFOLOVLLM_HF_TOKEN_FILE={tmp_path}/token\n")
    assert ModelConfig(model="m").hf_token.get_secret_value() == SECRET
    origin = ModelConfig.find_in_environment()["hf_token"].origin
    assert origin == ".env:2 FOLOVLLM_HF_TOKEN_FILE"


def test_a_secret_given_twice(monkeypatch):
    env_file(f"FOLOVLLM_HF_TOKEN={SECRET}\n")
    monkeypatch.setenv("FOLOVLLM_HF_TOKEN_FILE", "token")
    message = refusal(ModelConfig, model="m")
    assert ".env:1 FOLOVLLM_HF_TOKEN and variable FOLOVLLM_HF_TOKEN_FILE" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("missing", None, "cannot be read"),
        (".", None, "cannot be read"),
        ("empty", b"\n", "is empty"),
        ("bytes", b"hf_\xff", "no UTF-8"),
        ("", None, "set but empty"),
    ],
)
def test_a_secret_file_that_gives_none(name, content, complaint, monkeypatch):
    if content is not None:
        Path(name).write_bytes(content)
    monkeypatch.setenv("FOLOVLLM_HF_TOKEN_FILE", name)
    message = refusal(ModelConfig, model="m")
    assert message.startswith("hf_token: variable FOLOVLLM_HF_TOKEN_FILE")
    assert complaint in message
    assert "hf_\\xff" not in message


def test_only_secrets_come_from_files(monkeypatch):
    monkeypatch.setenv("FOLOVLLM_MODEL_FILE", "x")
    assert "FOLOVLLM_MODEL_FILE" in refusal(check_variables, CONFIG_CLASSES)


# Public values


def test_public_values():
    assert public_value(Path("/a")) == "/a"
    assert public_value(None) is None
    assert public_value(True) is True
    assert public_value(0.5) == 0.5
    if torch is not None:
        assert public_value(torch.float16) == "float16"


# The whole tree


def test_engine_config_from_the_environment(monkeypatch):
    monkeypatch.setenv("FOLOVLLM_MODEL", "m")
    monkeypatch.setenv("FOLOVLLM_BLOCK_SIZE", "32")
    monkeypatch.setenv("FOLOVLLM_MAX_NUM_SEQS", "8")
    env_file("FOLOVLLM_MAX_MODEL_LEN=512\n")
    engine = EngineConfig()
    assert engine.model_config.model == "m"
    assert engine.model_config.max_model_len == 512
    assert engine.cache_config.block_size == 32
    assert engine.scheduler_config.max_num_seqs == 8
    assert engine.scheduler_config.max_model_len == 512


def test_engine_config_from_its_parts():
    model, cache, scheduler = ModelConfig(model="m"), CacheConfig(), SchedulerConfig()
    engine = EngineConfig(model_config=model, cache_config=cache, scheduler_config=scheduler)
    assert engine.model_config is model
    assert engine.cache_config is cache
    assert engine.scheduler_config == scheduler


def test_engine_config_without_a_model():
    assert "model is required" in refusal(EngineConfig)


def test_each_engine_has_parts_of_its_own(monkeypatch):
    monkeypatch.setenv("FOLOVLLM_MODEL", "m")
    one, other = EngineConfig(), EngineConfig()
    for name in ("model_config", "cache_config", "scheduler_config"):
        assert getattr(one, name) is not getattr(other, name)
    one.cache_config.block_size = 1
    assert other.cache_config.block_size == 16


@pytest.mark.parametrize(
    ("model", "scheduler", "expected"), [(100, None, 100), (100, 50, 50), (None, None, None)]
)
def test_the_scheduler_takes_the_models_length(model, scheduler, expected):
    passed = SchedulerConfig(max_model_len=scheduler, max_num_seqs=3)
    engine = EngineConfig(ModelConfig(model="m", max_model_len=model), scheduler_config=passed)
    assert engine.scheduler_config.max_model_len == expected
    assert engine.scheduler_config.max_num_seqs == 3
    assert passed.max_model_len == scheduler  # the caller's own is left as it was


@pytest.mark.parametrize("name", ["model_config", "cache_config", "scheduler_config"])
def test_parts_of_a_wrong_type(name):
    parts = {"model_config": ModelConfig(model="m"), name: {"block_size": 1}}
    message = refusal(EngineConfig, **parts)
    assert message.startswith(f"{name}: got a dict")
    assert "Config" in message


def test_from_options():
    engine = EngineConfig.from_options(
        model="m", block_size=8, max_num_seqs=2, max_model_len=64, dtype="half"
    )
    assert engine.model_config.dtype == "half"
    assert engine.cache_config.block_size == 8
    assert engine.scheduler_config.max_num_seqs == 2
    assert engine.model_config.max_model_len == engine.scheduler_config.max_model_len == 64


def test_from_options_refuses_unknown_ones():
    message = refusal(EngineConfig.from_options, model="m", blok_size=8, log_level="INFO")
    assert "no option 'blok_size'; did you mean block_size?" in message
    assert "no option 'log_level'" in message
    assert "max_num_seqs" in message  # lists those that there are


def test_copies_are_independent():
    engine = EngineConfig(ModelConfig(model="m"))
    other = copy.deepcopy(engine)
    other.cache_config.block_size = 1
    assert engine.cache_config.block_size == 16


# Assignment


def test_an_assignment_is_checked():
    config = CacheConfig()
    config.block_size = 32
    assert config.block_size == 32
    message = refusal(setattr, config, "block_size", 0)
    assert message == (
        "block_size: got 0; input should be greater than 0 (accepted: > 0 and <= 1048576)"
    )
    assert config.block_size == 32


def test_an_assignment_of_text_is_converted():
    config = ModelConfig(model="m")
    config.max_model_len = "64"
    assert config.max_model_len == 64


def test_an_assignment_to_no_field_is_refused():
    with pytest.raises(ValueError, match="blok_size"):
        CacheConfig().blok_size = 8
