"""The life of a deployment: what is stopped, and what is said of one that does not start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
    ReplicaState,
    ServeStatus,
)

from serving.app import APP_NAME
from serving.lifecycle import _overdue, stop
from serving.run_state import RunState, process_mark

WITHIN_S = 20.0


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def state_of(pid: int) -> RunState:
    return RunState(
        pid=pid, host="127.0.0.1", port=8000, model="m", admin_token="secret", process_mark=process_mark(pid)
    )


def test_a_deployment_is_stopped(sleeper: subprocess.Popen[bytes]) -> None:
    stop(state_of(sleeper.pid), say=print)
    assert sleeper.poll() is not None


def test_another_program_that_has_the_id_now_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    stop(replace(state_of(sleeper.pid), process_mark=process_mark(os.getpid())), say=print)
    assert sleeper.poll() is None


def test_one_that_is_gone_needs_no_stopping(sleeper: subprocess.Popen[bytes]) -> None:
    state = state_of(sleeper.pid)
    sleeper.kill()
    sleeper.wait(WITHIN_S)
    stop(state, say=print)


def deployment(status: DeploymentStatus, **replicas: int) -> DeploymentStatusOverview:
    states = {ReplicaState[name]: count for name, count in replicas.items()}
    trigger = DeploymentStatusTrigger.CONFIG_UPDATE_STARTED
    return DeploymentStatusOverview(status=status, status_trigger=trigger, replica_states=states, message="")


def test_what_never_starts_is_named_with_its_replicas() -> None:
    deployments = {
        "prefill": deployment(DeploymentStatus.HEALTHY, RUNNING=1),
        "decode": deployment(DeploymentStatus.UPDATING, RUNNING=1, STARTING=2),
        "gateway": deployment(DeploymentStatus.UPDATING),
    }
    application = ApplicationStatusOverview(
        status=ApplicationStatus.DEPLOYING, message="", last_deployed_time_s=0.0, deployments=deployments
    )
    error = _overdue(ServeStatus(applications={APP_NAME: application}), 1500.0)
    assert "within 1500 s: decode 1 running, 2 starting; gateway updating" in str(error)
