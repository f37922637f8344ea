"""The files in docker/ name what is there: targets, commands, flags, paths; the containers are not privileged."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from project import ROOT
from ruamel.yaml import YAML
from typer.testing import CliRunner

from conr.stages.cli import app

DOCKER = ROOT / "docker"
EXAMPLES = DOCKER / "examples"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
CALLS = {
    "build-and-try.sh": {"cluster", "assign", "info --verify"},
    "compose.yaml": {"assign"},
    "examples/kubernetes.yaml": {"cluster"},
    "examples/skypilot.yaml": {"cluster"},
    "examples/slurm.sh": {"prepare", "pretrain", "finetune", "extract --shard", "evaluate"},
    "examples/weekly.yml": {"info --verify"},
}
WORDS = {"dvc", "is", "resumes", "that"}  # which follow the image's or the project's name


def parts(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    return list(YAML(typ="safe").load_all(path))


SERVICES: dict[str, Any] = parts(DOCKER / "compose.yaml")[0]["services"]


def test_the_image_without_a_target_is_the_pipeline_and_both_have_a_user_by_number() -> None:
    assert {"runtime", "pipeline"} < TARGETS
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    assert stages[-1].splitlines()[0].endswith(" AS pipeline")
    for stage in stages:
        if stage.splitlines()[0].endswith((" AS runtime", " AS pipeline")):
            assert re.search(r"^USER 1000:1000$", stage, re.MULTILINE)


def test_all_that_is_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for arguments in re.findall(r"^COPY ([^-].*)$", DOCKERFILE, re.MULTILINE):
        for name in arguments.split()[:-1]:
            assert (ROOT / name).exists()
            assert f"!{name}" in ignored or f"!{name}/**" in ignored


@pytest.mark.parametrize("service", SERVICES)
def test_services_are_built_from_a_target_and_hold_no_privileges(service: str) -> None:
    content = SERVICES[service]
    build = content["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).resolve() == DOCKER / "Dockerfile"
    assert build["target"] in TARGETS
    assert content["user"] == "${UID:-1000}:${GID:-1000}"
    assert content["read_only"] is True
    assert content["cap_drop"] == ["ALL"]
    (volume,) = content["volumes"]
    source, _, target = volume.partition(":")
    assert (DOCKER / source).resolve() == ROOT
    assert content["working_dir"] == target


def test_requirements_are_those_of_the_project() -> None:
    command = [sys.executable, str(DOCKER / "requirements.py"), "build", "runtime", "dependencies", "pretrained"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert printed == [
        *content["build-system"]["requires"],
        *content["dependency-groups"]["runtime"],
        *content["project"]["dependencies"],
        *content["project"]["optional-dependencies"]["pretrained"],
    ]


def test_every_example_says_what_was_not_run() -> None:
    assert {f"examples/{path.name}" for path in EXAMPLES.iterdir()} < set(CALLS)
    for path in EXAMPLES.iterdir():
        top = [line for line in path.read_text(encoding="utf-8").splitlines()[:12] if line.startswith("# ")]
        assert "Checked" in " ".join(top)
        assert "has not run" in " ".join(top)


@pytest.mark.parametrize("file", CALLS)
def test_the_commands_and_flags_that_are_named_exist(file: str) -> None:
    text = (DOCKER / file).read_text(encoding="utf-8").replace("[conr, cluster", "conr cluster")
    named = set(re.findall(r"(?:bin/)?conr (?!conr)([a-z]+(?: --[a-z]+)?)", text)) - WORDS
    assert named == CALLS[file]
    for call in named:
        name, _, flag = call.partition(" ")
        help_text = CliRunner().invoke(app, [name, "--help"])
        assert help_text.exit_code == 0
        assert flag in help_text.stdout


def test_the_job_of_kubernetes_is_not_privileged_and_all_its_volumes_are_there() -> None:
    claim, job = parts(EXAMPLES / "kubernetes.yaml")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 1000
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
    assert container["workingDir"] == mounted["project"]
    assert container["args"] == ["conr", "cluster", mounted["photos"]]
    assert claim["metadata"]["name"] in {
        volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]
    }


def test_the_tasks_of_slurm_make_all_shards(tmp_path: Path) -> None:
    script = (EXAMPLES / "slurm.sh").read_text(encoding="utf-8")
    first, last = map(int, re.findall(r"^#SBATCH --array=(\d+)-(\d+)$", script, re.MULTILINE)[0])
    stub = tmp_path / "conr"
    stub.write_text('#!/bin/sh\necho "$@" >> calls\n', encoding="utf-8")
    stub.chmod(0o755)
    for task in range(first, last + 1):
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": str(task)}
        subprocess.run(["bash", str(EXAMPLES / "slurm.sh")], cwd=tmp_path, env=environment, check=True)
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert calls == [f"extract --shard {task}/{last}" for task in range(1, last + 1)]


def test_the_task_of_skypilot_installs_this_project_and_works_in_a_mounted_folder() -> None:
    (task,) = parts(EXAMPLES / "skypilot.yaml")
    assert task["workdir"] == "."
    assert "'.[pretrained]'" in task["setup"]
    assert {"/photos", "/project"} == set(task["file_mounts"])
    assert task["run"].split("\n")[:2] == ["cd /project", "~/conr/bin/conr cluster /photos"]


def test_the_weekly_workflow_runs_what_is_there() -> None:
    (workflow,) = parts(EXAMPLES / "weekly.yml")
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    lines = "\n".join(step.get("run", "") for step in steps)
    assert "make test" in lines
    for file in set(re.findall(r"-f (\S+)", lines)):
        assert (ROOT / file).is_file()
