"""The study in a real PostgreSQL, with the password where the manifests put it: PGPASSWORD."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.postgres import Postgres
from tests.launch.helpers import PLAIN, environment

pytestmark = pytest.mark.slow
PASSWORD = "only-in-the-environment"


@pytest.fixture
def address(postgres: Postgres) -> dict[str, str]:
    """libpq's variables for a server that requires the password."""
    server = postgres
    server.psql(f"CREATE ROLE mptune LOGIN PASSWORD '{PASSWORD}'")
    server.psql("CREATE DATABASE mptune OWNER mptune")
    hba = server.folder / "pg_hba.conf"
    hba.write_text("local all mptune scram-sha-256\n" + hba.read_text())
    server.psql("SELECT pg_reload_conf()")
    host = str(Path(server.socket).parent)
    return {"PGHOST": host, "PGUSER": "mptune", "PGDATABASE": "mptune", "PGPASSWORD": PASSWORD}


def search(folder: Path, run: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mptune", "search", "spec.yaml", "--run-dir", run]
    return subprocess.run(
        [*command, "--set", "storage.url=postgresql+psycopg2://", "--local"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_a_driver_on_another_pod_resumes_and_a_reader_cannot_write(
    tmp_path: Path, address: dict[str, str]
) -> None:
    (tmp_path / "spec.yaml").write_text(PLAIN)
    env = environment(tmp_path, **address)
    first = search(tmp_path, "run", env)
    assert first.returncode == 0, first.stdout + first.stderr
    again = search(tmp_path, "run", env)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "started on gang" not in again.stdout

    wrong = search(tmp_path, "run", {**env, "PGPASSWORD": "wrong"})
    assert wrong.returncode == 2
    assert "password authentication failed" in wrong.stderr
    assert "Traceback" not in wrong.stderr

    script = (
        "import optuna; s = optuna.storages.RDBStorage('postgresql+psycopg2://');"
        "study = optuna.load_study(study_name='tiny', storage=s); print(len(study.trials));"
        "study.set_user_attr('x', 1)"
    )
    reader = {**os.environ, **address, "PGOPTIONS": "-c default_transaction_read_only=on"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=reader, capture_output=True, text=True, check=False
    )
    assert done.stdout == "2\n"
    assert "read-only transaction" in done.stderr
