"""manifest.json: what Ferry wrote into a model folder, to tell later whether it is still whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

MANIFEST_FILE = "manifest.json"


def write_manifest(folder: Path, *, name: str, source: str, licence: str) -> None:
    """Records size and sha256 of every file in `folder`."""
    entries = {
        path.name: {"size_bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST_FILE
    }
    manifest = {"name": name, "source": source, "licence": licence, "files": entries}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")


def find_damage(folder: Path, *, verify: bool = False) -> str | None:
    """Why `folder` differs from its manifest, or None. Compares sizes; with `verify` sha256 too."""
    try:
        entries = json.loads((folder / MANIFEST_FILE).read_bytes())["files"]
        expected = {str(name): (int(e["size_bytes"]), str(e["sha256"])) for name, e in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST_FILE} is missing or unreadable"
    if not expected:
        return f"{MANIFEST_FILE} lists no files"
    for name, (size_bytes, sha256) in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size_bytes:
            return f"{name} has {path.stat().st_size:,} bytes, not {size_bytes:,}"
        if verify and sha256_of(path) != sha256:
            return f"{name} has another sha256 than its manifest"
    return None


def has_manifest(folder: Path) -> bool:
    return (folder / MANIFEST_FILE).is_file()


def sha256_of(path: Path) -> str:
    """Hex digest; reads the file in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
