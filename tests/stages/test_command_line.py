"""The command line: flags over file, clear errors, quick help."""

import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from forked import run_conr
from PIL import Image
from project import BIN, refused, table, tiny, write_params

from conr.errors import UserError
from conr.pipeline.workspace import RECORD, Workspace
from conr.stages import cli
from conr.stages.cli import STAGES


@pytest.fixture
def with_images(workspace: Workspace, project: Path) -> Path:
    """A project with packed images and a tiny params.yaml."""
    assert workspace.root == project
    return project


@pytest.mark.parametrize("command", [*STAGES, "ablate", "estimate"])
def test_impossible_parameters_are_refused_before_anything_runs(project: Path, command: str) -> None:
    write_params(project, {"kk1": 3, "k2": 0})
    said = refused(project, command)
    assert said.startswith("Error: params.yaml: ")
    assert "unknown key kk1; did you mean k1?" in said
    assert "k2 = 0 should be greater than or equal to 1" in said
    assert [path.name for path in project.iterdir()] == ["params.yaml"]


def test_parameters_of_another_stage_are_checked_too(project: Path) -> None:
    write_params(project, {"k2": 21})
    assert "k2 = 21 is larger than k1 = 20" in refused(project, "prepare")


def test_an_old_key_is_named_with_its_new_name(project: Path) -> None:
    write_params(project, {"finetune.rate": 0.1})
    said = refused(project, "prepare")
    assert said == "Error: params.yaml: the key finetune.rate is called finetune.lr_scale now; rename it"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fr", "0"], "fr = 0.0 should be greater than 0"),
        (["--fr", "1.5"], "fr = 1.5 should be less than or equal to 1"),
        (["--k1", "ten"], "Invalid value for '--k1'"),
        (["--k1", "257"], "k1 = 257 is larger than finetune.batch_size = 256"),
        (["--k1", "5", "--k2", "6"], "k2 = 6 is larger than k1 = 5"),
        (["--clusters", "1798"], "clusters = 1798 is larger than the number of images to train on (1797)"),
        (["--framework", "simsiamese"], "Invalid value for '--framework'"),
        (["--kk", "3"], "No such option: --kk"),
        (["--seeds", "x"], "'x' should be whole numbers such as 0,1,2"),
        (["--seeds", "1.5"], "'1.5' should be whole numbers such as 0,1,2"),
        (["--seeds", "3,4,3"], "seeds = [3, 4, 3] names a seed twice"),
        (["--seeds", "3,-4"], "seeds.1 = -4 should be greater than or equal to 0"),
    ],
)
def test_flags_pass_the_same_checks(with_images: Path, flags: list[str], message: str) -> None:
    assert message in refused(with_images, "finetune", *flags)
    assert not (with_images / "artifacts/finetune").exists()


def test_a_missing_params_file_says_where_to_get_one(tmp_path: Path) -> None:
    said = refused(tmp_path, "pretrain")
    assert said.startswith("Error: there is no params.yaml in ")
    assert "conr preset digits" in said


def test_a_file_where_a_folder_should_be_is_named_and_the_reverse(project: Path) -> None:
    (project / "artifacts").touch()
    assert refused(project, "prepare") == (
        "Error: artifacts cannot be written to (Not a directory); make it a folder that you may write to"
    )
    (project / "params.yaml").unlink()
    (project / "params.yaml").mkdir()
    assert refused(project, "prepare") == "Error: params.yaml: Is a directory"


def test_more_clusters_than_images_is_found_before_pretraining(with_images: Path) -> None:
    write_params(with_images, {"clusters": 5000})
    assert "clusters = 5000 is larger than the number of images to train on (1797)" in refused(with_images, "pretrain")


def test_flags_override_the_file_and_the_file_the_declaration(with_images: Path) -> None:
    shown = run_conr(with_images, "pretrain", "--help").stdout
    assert "[default: 2]" in shown  # the file's epochs; the declaration says 800
    result = run_conr(with_images, "pretrain", "--epochs", "1")
    assert result.returncode == 0, result.stderr
    assert len(table(with_images / "artifacts/pretrain/log.csv")) == 1
    assert "1 epochs of byol, loss " in result.stdout
    assert result.stdout.endswith("weights in artifacts/pretrain/weights.safetensors\n")


def test_the_last_part_of_a_key_is_its_flag_and_the_framework_s_name_that_of_its_group(project: Path) -> None:
    shown = " ".join(run_conr(project, "pretrain", "--help").stdout.replace("│", " ").split())
    for flag in ("--framework", "--predictor-lr-scale", "--noise-std", "--predictor-init-std", "--grayscale"):
        assert f" {flag} " in shown
    assert "--name " not in shown


def test_a_stage_whose_input_is_missing_says_what_to_run(with_images: Path) -> None:
    said = refused(with_images, "finetune")
    assert "artifacts/pretrain/weights.safetensors does not exist; run the stage before this one first" in said
    assert not (with_images / "artifacts/finetune").exists()


def test_a_damaged_record_is_one_line(with_images: Path) -> None:
    """`tests/pipeline/test_records.py` has more damages, of all records."""
    (with_images / "artifacts/embeddings").mkdir()
    (with_images / "artifacts/embeddings" / RECORD).write_text('{"seeds": [0], "ma')
    result = run_conr(with_images, "evaluate")
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: artifacts/embeddings/{RECORD} is missing or damaged (")
    assert line.endswith("; run conr extract again")


def half_broken(folder: Path) -> None:
    folder.mkdir()
    for number in range(2):
        pixels = np.full((9, 9, 3), 100 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"good{number}.png")
        (folder / f"bad{number}.png").write_bytes(b"\x89PNG")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "does not exist"),
        (Path.mkdir, "holds no image at any depth"),
        (half_broken, "2 of 4 images cannot be read (50%)"),
    ],
    ids=["missing", "empty", "half broken"],
)
def test_folders_that_cannot_be_used_are_refused(project: Path, make: Callable[[Path], None], message: str) -> None:
    make(project / "photos")
    assert message in refused(project, "prepare", "--source", "folder", "--path", "photos", "--labels", "none")
    assert not (project / "artifacts/store").exists()


def test_networks_that_do_not_fit_into_memory_are_one_message(with_images: Path) -> None:
    message = refused(with_images, "pretrain", "--hidden", "1000000", "--dimension", "1000000")  # terabytes
    assert message == "Error: pretrain does not fit into memory; lower pretrain.batch_size or network.width"


@pytest.mark.parametrize(
    ("stage", "error", "expected"),
    [
        (
            "finetune",
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            UserError(
                "finetune does not fit into the GPU's memory; lower finetune.batch_size or network.width, or set "
                "device: cpu"
            ),
        ),
        ("extract", MemoryError("9 GiB"), UserError("extract does not fit into memory; free some")),
        ("pretrain", RuntimeError("shapes differ"), RuntimeError("shapes differ")),
    ],
    ids=["GPU", "not in training", "another error"],
)
def test_memory_that_is_too_small_is_named_and_no_other_error_is(
    stage: str, error: Exception, expected: Exception, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(importlib.import_module(f"conr.stages.{stage}"), "run", failing)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # SIGTERM still ends these tests
    with pytest.raises(type(expected), match=f"^{expected}$"):
        cli.run(stage, tiny())


def test_a_stop_while_the_libraries_load_says_so(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> NoReturn:
        raise KeyboardInterrupt(signal.SIGTERM)

    monkeypatch.setattr(cli.importlib, "import_module", stopped)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # SIGTERM still ends these tests
    with pytest.raises(SystemExit) as ended:
        cli.run("pretrain", tiny())
    assert ended.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "Error: stopped; run the same command to resume after the last saved epoch\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount a tiny tmpfs: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_while_packing_leaves_nothing_half_written(small_disk: Path) -> None:
    write_params(small_disk)
    assert "the disk is full" in refused(small_disk, "prepare")
    assert not any((small_disk / "artifacts").iterdir())


def test_a_full_disk_while_training_says_so(with_images: Path, small_disk: Path) -> None:
    (with_images / ".conr").symlink_to(small_disk)  # the checkpoints go to the small disk
    assert "the disk is full" in refused(with_images, "pretrain")
    assert not list(small_disk.rglob("state.pt"))


HEAVY = {"torch", "numpy", "faiss", "sklearn", "onnxruntime", "matplotlib", "PIL"}
LOADED = """
import sys
from conr.stages import cli
sys.argv = ["conr", *{command}, "--help"]
try:
    cli.main()
except SystemExit as end:
    assert end.code == 0
print("loaded:", *{heavy} & set(sys.modules))
"""


@pytest.mark.parametrize(
    "command",
    [[], *([name] for name in (*STAGES, "new", "assign", "preset", "ablate", "sweep", "estimate"))],
    ids=lambda command: " ".join(command) or "conr",
)
def test_help_teaches_and_loads_nothing_heavy(command: list[str], tmp_path: Path) -> None:
    heavy = set(HEAVY)
    if not set(STAGES).intersection(command):
        heavy |= {"yaml", "ruamel.yaml", "rich.progress"}  # for params.yaml, and for what runs
    if not command:
        heavy |= {"pydantic"}  # for the flags of the stages; Typer itself takes it for those of the others
    script = LOADED.format(command=command, heavy=heavy)
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    *shown, loaded = result.stdout.splitlines()
    assert loaded.split() == ["loaded:"]
    assert f"Usage: {' '.join(['conr', *command])}" in "\n".join(shown)


def test_the_commands_are_those_that_their_help_describes(tmp_path: Path) -> None:
    result = run_conr(tmp_path)
    for name in (*STAGES, "new", "assign", "preset", "ablate", "sweep", "estimate"):
        assert f" {name} " in result.stdout + result.stderr


def test_help_works_with_a_broken_params_file(project: Path) -> None:
    (project / "params.yaml").write_text("k: [1,")
    result = run_conr(project, "finetune", "--help")
    assert result.returncode == 0
    assert "--k1" in result.stdout


def test_output_is_quiet_without_a_terminal(project: Path) -> None:
    # The real command: a library that it imports must not warn, either.
    result = subprocess.run([BIN / "conr", "prepare"], cwd=project, capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.stdout.splitlines()[0].endswith("from scikit-learn's digits in artifacts/store")


def test_manifest_says_what_was_skipped(project: Path) -> None:
    half_broken(project / "photos")
    (project / "photos/notes.txt").write_text("no image")
    flags = ["--source", "folder", "--path", "photos", "--labels", "none", "--max-broken", "0.5"]
    result = run_conr(project, "prepare", *flags)
    assert result.returncode == 0, result.stderr
    manifest = json.loads((project / "artifacts/store/manifest.json").read_text())
    assert manifest["files"] == ["good0.png", "good1.png"]
    assert {file for file, _ in manifest["skipped"]} == {"bad0.png", "bad1.png", "notes.txt"}


def test_new_makes_a_project_or_says_in_one_line_why_not(tmp_path: Path) -> None:
    result = run_conr(tmp_path, "new", "photos", "--preset", "folder", "--no-git")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("photos is a project with the preset folder. Go there: cd photos\n")
    assert refused(tmp_path, "new", "photos") == "Error: photos is not an empty folder; name a new one"
    assert "there is no preset digitz" in refused(tmp_path, "new", "others", "--preset", "digitz")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
