"""Fixtures that unit and integration tests share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The default model's folder, fetched when it is not there yet."""
    from folovllm import ensure_demo_model

    return ensure_demo_model()
