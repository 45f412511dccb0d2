"""What a deployment leaves on disk, and which process it names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from serving import run_state
from serving.errors import ConfigError
from serving.run_state import RunState, find, process_mark, read, run_dir, save

STATE = RunState(
    pid=os.getpid(), host="127.0.0.1", port=8000, model="m", admin_token="s", process_mark=process_mark(os.getpid())
)


def saved(home: Path, state: RunState) -> RunState:
    save(run_dir(home, state.port), state)
    return state


def test_what_is_saved_is_found_again(tmp_path: Path) -> None:
    assert saved(tmp_path, STATE).alive
    assert find(tmp_path, None) == find(tmp_path, 8000) == STATE
    assert (run_dir(tmp_path, 8000) / "state.json").stat().st_mode & 0o777 == 0o600
    run_state.forget(run_dir(tmp_path, 8000))
    assert read(run_dir(tmp_path, 8000)) is None


@pytest.mark.parametrize("mark", ["another-boot {tick}", "{boot} 1", ""])
def test_a_process_that_only_has_the_same_id_is_not_it(tmp_path: Path, mark: str) -> None:
    boot, tick = (STATE.process_mark or "").split()
    state = saved(tmp_path, replace(STATE, process_mark=mark.format(boot=boot, tick=tick)))
    assert not state.alive
    with pytest.raises(ConfigError, match="no Ferry runs here"):
        find(tmp_path, None)


def test_the_mark_is_one_processs_own_and_ends_with_it() -> None:
    code = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(code, stdin=subprocess.PIPE) as one, subprocess.Popen(code, stdin=subprocess.PIPE) as two:
        marks = [process_mark(process.pid) for process in (one, two)]
        assert process_mark(one.pid) == marks[0]
    assert process_mark(one.pid) is None
    assert None not in marks and STATE.process_mark not in marks


def test_what_an_older_ferry_wrote_is_still_found(tmp_path: Path) -> None:
    old = {"pid": os.getpid(), "host": "127.0.0.1", "port": 8000, "model": "m", "admin_token": "s", "answers": True}
    (run_dir(tmp_path, 8000) / "state.json").write_text(json.dumps(old))
    assert find(tmp_path, 8000).pid == os.getpid()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("", "http://127.0.0.1:8000"),
        ("::", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("example.org", "http://example.org:8000"),
    ],
)
def test_the_url_from_this_machine(host: str, url: str) -> None:
    assert replace(STATE, host=host).base_url == url
