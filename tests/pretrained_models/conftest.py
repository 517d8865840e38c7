"""The server, and no proxy before it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pretrained_models.fetching import fetch
from tests.pretrained_models.remote import Remote


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    server = Remote()
    yield server
    server.stop()
