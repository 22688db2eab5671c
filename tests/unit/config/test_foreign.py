"""What Kubernetes and Docker set for a service or a container with our name."""

import os

import pytest

from folovllm.config import CONFIG_CLASSES, CacheConfig
from folovllm.config.foreign import foreign_variables
from folovllm.config.settings import check_variables
from folovllm.config.sources import read_environment
from folovllm.errors import ConfigError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.upper().startswith("FOLOVLLM_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def kubernetes(service, address="10.0.0.7", port=8000, protocol="tcp"):
    """What Kubernetes' `envvars.FromServices` makes of a Service."""
    name = service.upper().replace("-", "_")
    host = f"[{address}]" if ":" in address else address
    url, base = f"{protocol}://{host}:{port}", f"{name}_PORT_{port}_{protocol.upper()}"
    return {
        f"{name}_SERVICE_HOST": address,
        f"{name}_SERVICE_PORT": str(port),
        f"{name}_SERVICE_PORT_HTTP_METRICS": str(port),
        f"{name}_PORT": url,
        base: url,
        f"{base}_PROTO": protocol,
        f"{base}_PORT": str(port),
        f"{base}_ADDR": address,
    }


def docker(alias):
    """What `docker run --link db:alias` sets."""
    name = alias.upper().replace("-", "_")
    return {
        f"{name}_NAME": f"/client/{alias}",
        f"{name}_PORT": "tcp://172.17.0.5:8000",
        f"{name}_PORT_8000_TCP": "tcp://172.17.0.5:8000",
        f"{name}_PORT_8000_TCP_ADDR": "172.17.0.5",
        f"{name}_PORT_8000_TCP_PORT": "8000",
        f"{name}_PORT_8000_TCP_PROTO": "tcp",
        f"{name}_PORT_8000_TCP_START": "tcp://172.17.0.5:8000",
        f"{name}_PORT_8000_TCP_END": "tcp://172.17.0.5:8010",
        f"{name}_PORT_8000_TCP_PORT_START": "8000",
        f"{name}_PORT_8000_TCP_PORT_END": "8010",
        f"{name}_ENV_PYTHON_VERSION": "3.12.1",
        f"{name}_ENV_EMPTY": "",
    }


@pytest.mark.parametrize(
    "variables",
    [
        kubernetes("folovllm"),
        kubernetes("folovllm-server"),
        kubernetes("folovllm-gpu-0-headless", "fd00::7", 53, "udp"),
        kubernetes("folovllm", protocol="sctp"),
        docker("folovllm"),
        docker("folovllm_db"),
    ],
)
def test_passed_over(variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FOLOVLLM_BLOCK_SIZE", "32")
    assert foreign_variables(variables) == set(variables)
    check_variables(CONFIG_CLASSES)
    assert CacheConfig().block_size == 32
    assert set(read_environment()) == {"FOLOVLLM_BLOCK_SIZE"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FOLOVLLM_PORT", "8000"),
        ("FOLOVLLM_PORT", "http://localhost:8000"),
        ("FOLOVLLM_HOST", "10.0.0.7"),
        ("FOLOVLLM_SERVICE_HOST", "somewhere"),
        ("FOLOVLLM_SERVICE_PORT", "http"),
        ("FOLOVLLM_PORT_8000_TCP", "8000"),
        ("FOLOVLLM_PORT_8000_TCP_PROTO", "http"),
        ("FOLOVLLM_ENV_FIEL", ".env"),
        ("FOLOVLLM_NAME", "model"),
        ("FOLOVLLM_BLOK_SIZE", "32"),
    ],
)
def test_everything_else_is_guarded(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name} is not a variable of FoloVLLM"):
        check_variables(CONFIG_CLASSES)


def test_the_env_file_can_still_be_named_beside_a_link(monkeypatch):
    for name, value in docker("folovllm").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FOLOVLLM_ENV_FILE", os.devnull)
    assert set(read_environment()) == {"FOLOVLLM_ENV_FILE"}


def test_a_port_of_kubernetes_does_not_hide_ours(monkeypatch, tmp_path):
    monkeypatch.setenv("FOLOVLLM_PORT", "tcp://10.0.0.7:8000")
    (tmp_path / ".env").write_text("FOLOVLLM_PORT=9000\n")
    assert read_environment()["FOLOVLLM_PORT"].value == "9000"
