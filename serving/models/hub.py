"""Models of the Hugging Face hub, through its client and cache. Works offline for what the cache holds."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Protocol

import httpx2
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from tqdm import tqdm

from serving.errors import FerryError, ModelNotFound, ModelUnavailable
from serving.models.folder import ModelFolder, Progress, Source, check_folder

HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")

# What vLLM reads; other formats of the same weights stay on the hub.
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "tokenizer*")
UNWANTED = ("consolidated*", "original/*", "onnx/*")


# All that the hub's client raises when a download fails: files, names, HTTP, its chunk store.
CLIENT_ERRORS = (OSError, HFValidationError, httpx2.HTTPError, XetDownloadError)


class Snapshot(Protocol):
    """The part of `huggingface_hub.snapshot_download` that we use."""

    def __call__(
        self,
        repo_id: str,
        *,
        revision: str | None,
        allow_patterns: list[str],
        ignore_patterns: list[str],
        tqdm_class: type[tqdm],
    ) -> str: ...


def fetch(hub_id: str, progress: Progress, snapshot: Snapshot = snapshot_download) -> ModelFolder:
    """`org/name`, or `org/name@revision`, in the hub's own cache.

    Raises ModelNotFound, ModelUnavailable (offline, gated, interrupted) and ModelInvalid (no safetensors).
    """
    parts = HUB_ID.fullmatch(hub_id)
    assert parts is not None, "the caller matches HUB_ID first"
    stage = f"downloading {hub_id} from the hub"
    progress(stage, None)
    try:
        path = snapshot(
            parts["repo"],
            revision=parts["revision"],
            allow_patterns=list(WANTED),
            ignore_patterns=list(UNWANTED),
            tqdm_class=_bar(stage, progress),
        )
    except CLIENT_ERRORS as error:
        raise explain(hub_id, error) from error
    return check_folder(Path(path), name=parts["repo"], source=Source.HUB)


def explain(hub_id: str, error: Exception) -> FerryError:
    """The hub client's error as ours. Gated is a kind of not found in theirs, so it comes first."""
    match error:
        case GatedRepoError():
            return ModelUnavailable(
                f"{hub_id} is gated: its owner asks you to accept terms first",
                "accept them on the model's page, then set HF_TOKEN or run `hf auth login`",
            )
        case RevisionNotFoundError():
            return ModelNotFound(f"{hub_id} has no such revision", "leave out @revision, or name an existing one")
        case RepositoryNotFoundError() | HFValidationError():
            return ModelNotFound(
                f"the hub has no model {hub_id}, or it is private",
                "check the spelling; for a private model set HF_TOKEN or run `hf auth login`",
            )
        case LocalEntryNotFoundError():
            return ModelUnavailable(
                f"{hub_id} is not in the local Hugging Face cache, and the hub cannot be reached",
                "go online and unset HF_HUB_OFFLINE, or pass a local folder or the built-in smollm2-135m",
            )
        case HfHubHTTPError():
            return ModelUnavailable(f"the hub refused {hub_id}: {_first_line(error)}", "try again later")
    return ModelUnavailable(
        f"the download of {hub_id} broke off: {_first_line(error)}",
        "check the network and the free disk space, and run it again: finished files are kept",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _bar(stage: str, progress: Progress) -> type[tqdm]:
    """A tqdm that tells `progress` the fraction of bytes fetched and draws nothing itself."""

    class Bar(tqdm):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **(options | {"file": io.StringIO()}))

        def display(self, *_args: object, **_options: object) -> None:
            # The client shows three bars: files, bytes received, bytes written. We follow the last.
            if self.unit == "B" and self.total and str(self.desc).startswith("Reconstruct"):
                progress(stage, min(1.0, self.n / self.total))

    return Bar
