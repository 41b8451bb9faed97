"""Profiles are validated like specs, and mistakes on the command line get one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mptune.cli import main
from mptune.spec.source import read_plugin
from tests.launch.helpers import ROOT, SPEC, free_ports

PROFILES = sorted((ROOT / "launchers").glob("*.yaml"))


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_every_profile_is_valid_and_shows_its_command(path: Path) -> None:
    assert read_plugin(path, "launchers", "kind").kind in path.stem
    assert f"--on launchers/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_a_dry_run_writes_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(SPEC)
    assert main(["launch", "spec.yaml", "--on", str(path), "--dry-run"]) == 0
    assert "mptune search" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["spec.yaml"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("kind: kubernets\n", "p.yaml:1: 'kubernets' is not one of the launchers: kubernetes, "),
        (
            "kind: kubernetes\nimagge: mptune:1\n",
            "p.yaml:2: imagge: unknown key; allowed: kind, namespace, context, image, ",
        ),
        ("kind: kubernetes\nimage: mptune\n", "p.yaml:2: image: 'mptune' string should match"),
        (
            "kind: kubernetes\nretries: many\n",
            "p.yaml:2: retries: 'many' must be a valid integer",
        ),
        (
            "kind: kubernetes\npools:\n  - {min_gangs: 3, max_gangs: 2}\n",
            "p.yaml:3: pools.0: min_gangs 3 is more than max_gangs 2",
        ),
        (
            "kind: kubernetes\npools:\n  - {name: a}\n  - {name: a}\n",
            "p.yaml:1: : pools: 'a' is the name of two pools",
        ),
        (
            "kind: kubernetes\ndatabase:\n  port: 70000\n",
            "p.yaml:3: database.port: 70000 must be less than 65536",
        ),
        (
            "kind: kubernetes\ndatabase:\n  password: x\n",
            "p.yaml:3: database.password: unknown key; allowed: host, port, user, database, secret",
        ),
        ("kind: kubernetes\npools:\n  - gpus: -1\n", "p.yaml:3: pools.0.gpus: -1 must be greater"),
        (
            "kind: kubernetes\nray_version: 2.51.0\n",
            "p.yaml:1: : ray_version: 2.51.0 has no tokens",
        ),
        ("kind: ray\ndashboard: here\n", "p.yaml:2: dashboard: 'here' string should match"),
        ("kind: slurm\n", "p.yaml:1: cpus_per_node: is missing"),
        (
            "kind: slurm\ncpus_per_node: 4\ntime_limit: long\n",
            "p.yaml:3: time_limit: 'long' string should",
        ),
        (
            'kind: slurm\ncpus_per_node: 4\noptions: ["--x=1\\nrm -r /"]\n',
            "p.yaml:3: options.0: '--x=1\\nrm -r /' string should match",
        ),
        ('kind: ray\nruns: "~/a\\nb"\n', "p.yaml:2: runs: '~/a\\nb' string should match"),
        ("image: x\n", "p.yaml:1: needs 'kind', one of kubernetes, ray, slurm"),
        ("kind: [\n", "not valid YAML"),
        ("kind: ray\nkind: ray\n", "p.yaml:2: kind is given twice"),
    ],
)
def test_a_mistake_in_a_profile_is_one_line(
    text: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.yaml").write_text(text)
    (tmp_path / "spec.yaml").write_text(SPEC)
    code = main(["launch", str(tmp_path / "spec.yaml"), "--on", str(tmp_path / "p.yaml")])
    (shown,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert line in shown


KUBERNETES = str(ROOT / "launchers" / "kubernetes.yaml")
SLURM = str(ROOT / "launchers" / "slurm.yaml")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["stat", "x", "--on", KUBERNETES],
            "no such action; actions: status, logs, fetch, stop; did",
        ),
        (["status", "--on", KUBERNETES], "mptune launch status: needs the NAME of one search"),
        (["status", "../x", "--on", KUBERNETES], "'../x' is not the name of a search"),
        (["status", "A_b", "--on", KUBERNETES], "'A_b' cannot name a RayJob"),
        (["spec.yml", "--on", KUBERNETES], "spec.yml: no such file; did you mean 'spec.yaml'?"),
        (["spec.yaml", "--on", "kubernetes.yaml"], "kubernetes.yaml: no such file"),
        (["spec.yaml"], "the following arguments are required: --on"),
        (["spec.yaml", "--on", KUBERNETES, "--dry-rum"], "unrecognized arguments: --dry-rum"),
        (["spec.yaml", "--on", KUBERNETES, "--set", "name=My_Search"], "--set name=my-search"),
        (["spec.yaml", "--on", KUBERNETES, "--set", f"name={'a' * 48}"], "at most 47"),
        (
            ["spec.yaml", "--on", KUBERNETES, "--set", "resources.workers=8"],
            "spec.yaml: resources: a trial takes 8 workers of 1 CPU and 0 GPUs; no pool of the "
            "profile holds that (cpu: 1 pod of 2 CPUs and 0 GPUs); raise its cpus",
        ),
        (
            ["spec.yaml", "--on", KUBERNETES, "--set", "resources.gpus_per_worker=1"],
            "no pool of the profile holds that",
        ),
        (
            ["spec.yaml", "--on", KUBERNETES, "--set", "storage.url=sqlite:///x"],
            "spec.yaml: storage.url: the profile's database holds the study; leave this key out",
        ),
        (
            ["spec.yaml", "--on", SLURM, "--set", "resources.workers=8"],
            "the profile has only 1 node of 4 CPUs and 0 GPUs",
        ),
        (
            ["spec.yaml", "--on", SLURM, "--set", "resources.by_size={100M: {workers: 8}}"],
            "spec.yaml: resources.by_size: a trial takes 8 workers of 1 CPU and 0 GPUs; the",
        ),
        (
            ["spec.yaml", "--on", KUBERNETES, "--set", "resources.by_size={1B: {workers: 4}}"],
            "spec.yaml: resources.by_size: a trial takes 4 workers of 1 CPU and 0 GPUs; no pool",
        ),
        (["spec.yaml", "--on", SLURM], "there is no sbatch here"),
        (["status", "x", "--on", SLURM], "there is no launched search x in runs"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    arguments: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(SPEC)
    assert main(["launch", *arguments]) in (2, 3)
    (shown,) = capsys.readouterr().err.splitlines()
    assert line in shown


def test_a_missing_kubeconfig_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert main(["launch", "status", "x", "--on", KUBERNETES]) == 3
    assert "no usable kubeconfig (KUBECONFIG, ~/.kube/config)" in capsys.readouterr().err


def test_launch_accepts_data_that_this_machine_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC.replace("package:email/*.py", "/mptune/run/data.txt"))
    assert main(["validate", str(spec)]) == 2
    assert main(["launch", str(spec), "--on", KUBERNETES, "--dry-run"]) == 0


def test_a_doctor_without_a_ray_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (port,) = free_ports(1)
    (tmp_path / "p.yaml").write_text(f"kind: ray\ndashboard: http://127.0.0.1:{port}\n")
    assert main(["launch", "doctor", "--on", str(tmp_path / "p.yaml")]) == 2
    assert capsys.readouterr().out.startswith("wrong: Ray Jobs API: no Ray Jobs API answers at ")
