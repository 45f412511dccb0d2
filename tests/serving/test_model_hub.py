"""Errors of the hub's client, as our own."""

from __future__ import annotations

import httpx2
import pytest
from huggingface_hub import errors as hub_errors

from serving.errors import FerryError, ModelNotFound, ModelUnavailable
from serving.models import hub
from serving.models.folder import quiet

ANSWER = httpx2.Response(404, request=httpx2.Request("GET", "http://hub.example"))


@pytest.mark.parametrize(
    ("cause", "expected", "words"),
    [
        (hub_errors.GatedRepoError("no", response=ANSWER), ModelUnavailable, "HF_TOKEN"),
        (hub_errors.RepositoryNotFoundError("no", response=ANSWER), ModelNotFound, "spelling"),
        (hub_errors.RevisionNotFoundError("no", response=ANSWER), ModelNotFound, "revision"),
        (hub_errors.HFValidationError("no"), ModelNotFound, "spelling"),
        (hub_errors.LocalEntryNotFoundError("no"), ModelUnavailable, "HF_HUB_OFFLINE"),
        (hub_errors.HfHubHTTPError("no", response=ANSWER), ModelUnavailable, "later"),
        (httpx2.ConnectError("cut"), ModelUnavailable, "network"),
        (OSError("disk full"), ModelUnavailable, "disk"),
    ],
)
def test_hub_errors_become_ours(cause: Exception, expected: type[FerryError], words: str) -> None:
    def snapshot(repo_id: str, **_options: object) -> str:
        assert repo_id == "org/name"
        raise cause

    with pytest.raises(expected) as caught:
        hub.fetch("org/name", quiet, snapshot)
    assert words in caught.value.remedy
    assert caught.value.__cause__ is cause
