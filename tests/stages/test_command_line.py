"""The command line: flags over file, clear errors, quick help."""

import importlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image
from project import ROOT, Conr, run_conr, write_params

from conr.data.store import open_store
from conr.errors import UserError
from conr.parameters import PretrainStage
from conr.training.checkpoints import save_weights
from stages import params_file
from stages.cli import STAGES, run_stage
from stages.pretrain import fresh_model


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose images are packed."""
    folder = tmp_path_factory.mktemp("packed")
    write_params(folder)
    assert run_conr(folder, "prepare").returncode == 0
    return folder


def refused(folder: Path, *arguments: str) -> str:
    """Run conr, assert that it refuses with exit code 2 and no stack trace, and return the message on one line."""
    result = run_conr(folder, *arguments)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kk1": 3}, "unknown key kk1; did you mean k1?"),
        ({"finetune": {"epoch": 3}}, "unknown key finetune.epoch; did you mean finetune.epochs?"),
        ({"k": "ten"}, "k = 'ten' should be a valid integer"),
        ({"k": 2.5}, "k = 2.5 should be a valid integer"),
        ({"k": True}, "k = True should be a valid integer"),
        ({"fr": 0}, "fr = 0 should be greater than 0"),
        ({"fr": 1.01}, "fr = 1.01 should be less than or equal to 1"),
        ({"prepare": {"source": "digit"}}, "prepare.source = 'digit' should be 'digits', 'folder', 'cifar10'"),
        (
            {"prepare": {"path": "~/photos"}},
            f"prepare.path = '~/photos' should be {Path.home()}/photos: DVC does not know ~",
        ),
        ({"prepare": {"path": "~nobody-here"}}, "prepare.path = '~nobody-here' should be ./~nobody-here"),
        ({"network": {"stem": None}}, "network.stem = None should be 'cifar' or 'imagenet'"),
        ({"views": 3}, "views = 3 should be"),
        ({"k1": 300}, "k1 = 300 is larger than finetune.batch_size = 256"),
        ({"k": 300}, "k = 300 is larger than finetune.batch_size = 256"),
        ({"k2": 21}, "k2 = 21 is larger than k1 = 20"),
        ({"optimiser": {"schedule_epochs": 3}}, "optimiser.schedule_epochs = 3 is shorter than"),
        ({"optimiser": {"warmup_epochs": 10}}, "optimiser.warmup_epochs = 10 leaves nothing"),
        ({"evaluate": {"context": 19}}, "k1 = 20 is larger than evaluate.context = 19"),
        ({"host": {"framework": "moco"}}, "host.framework = moco needs finetune.instance above 0"),
        (
            {"host": {"framework": "dino"}},
            "host.framework = 'dino' should be 'barlow-twins', 'byol', 'moco' or 'simsiam'",
        ),
        ({"network": {"bn_group": 96}}, "network.bn_group = 96 does not divide pretrain.batch_size = 128"),
        (
            {"network": {"bn_group": 64}, "finetune": {"batch_size": 200}},
            "network.bn_group = 64 does not divide finetune.batch_size = 200",
        ),
        ({"extract": {"precision": "int4"}}, "extract.precision = 'int4' should be 'float32' or 'int8'"),
        ({"seeds": [3, 4, 3]}, "seeds = [3, 4, 3] names a seed twice"),
        ({"seeds": [3, -1]}, "seeds.1 = -1 should be greater than or equal to 0"),
        ({"seeds": 3}, "seeds = 3 should be a valid list"),
    ],
)
def test_impossible_parameters_are_refused_before_anything_runs(
    project: Path, changes: dict[str, Any], message: str
) -> None:
    write_params(project, changes)
    assert message in refused(project, "prepare")
    assert not (project / "artifacts").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fr", "0"], "fr = 0.0 should be greater than 0"),
        (["--fr", "1.5"], "fr = 1.5 should be less than or equal to 1"),
        (["--k1", "ten"], "Invalid value for '--k1'"),
        (["--k1", "257"], "k1 = 257 is larger than finetune.batch_size = 256"),
        (["--k1", "5", "--k2", "6"], "k2 = 6 is larger than k1 = 5"),
        (["--clusters", "1798"], "clusters = 1798 is larger than the number of images (1797)"),
        (["--batch-size", "1798"], "finetune.batch_size = 1798 is larger than the number of images to train on (1797)"),
        (["--framework", "simsiamese"], "Invalid value for '--framework'"),
        (["--kk", "3"], "No such option: --kk"),
    ],
)
def test_flags_pass_the_same_checks(packed: Path, flags: list[str], message: str) -> None:
    assert message in refused(packed, "finetune", *flags)


@pytest.mark.parametrize(
    "changes",
    [
        {"host": {"framework": "moco"}, "finetune": {"instance": 1.0}},
        {"host": {"framework": "moco"}, "neighbourhood": {"neighbours": "none"}},
        {"host": {"framework": "simsiam"}},
        {"network": {"bn_group": 64}},
        {"evaluate": {"context": 20}},
    ],
    ids=["moco with its loss", "moco without ConNR", "simsiam", "groups that divide", "a context of k1"],
)
def test_parameters_that_go_together_are_accepted(changes: dict[str, Any], tmp_path: Path) -> None:
    write_params(tmp_path, changes)
    params_file.check_together(params_file.validated(params_file.read(tmp_path / "params.yaml")))


def test_group_concordance_alone_is_refused_wherever_features_could_collapse(project: Path) -> None:
    write_params(project, {"host": {"framework": "barlow-twins"}})
    params = params_file.validated(params_file.read(project / "params.yaml"))
    with pytest.raises(UserError, match=r"host\.framework = barlow-twins needs finetune\.instance above 0"):
        params_file.check_together(params)


def test_a_missing_key_is_named_with_its_default(project: Path) -> None:
    text = (project / "params.yaml").read_text().replace("fr: 0.8\n", "")
    (project / "params.yaml").write_text(text)
    assert "params.yaml lacks the key fr; add it (default: 0.8)" in refused(project, "prepare")


def test_a_missing_params_file_says_where_to_get_one(tmp_path: Path) -> None:
    assert "conr preset digits" in refused(tmp_path, "pretrain")


def test_a_params_file_that_is_no_yaml_is_named(project: Path) -> None:
    (project / "params.yaml").write_text("k: [1,")
    assert "params.yaml is not valid YAML" in refused(project, "prepare")


def test_a_params_file_that_is_not_in_utf_8_is_named_with_the_place(project: Path) -> None:
    (project / "params.yaml").write_bytes("seed: 0\n# für alle\n".encode("latin-1"))
    message = "params.yaml is not in UTF-8: line 2, byte 11 of the file is 0xfc; save it in UTF-8"
    assert message in refused(project, "prepare")
    assert message in refused(project, "ablate")


def test_files_and_folders_in_each_other_s_place_are_named(project: Path, tmp_path: Path) -> None:
    (project / "artifacts").touch()
    assert refused(project, "prepare") == "Error: artifacts/store.tmp: Not a directory"
    (project / "params.yaml").unlink()
    (project / "params.yaml").mkdir()
    assert refused(project, "prepare") == "Error: params.yaml: Is a directory"


def test_numbers_in_scientific_notation_are_numbers(project: Path) -> None:
    text = (project / "params.yaml").read_text().replace("weight_decay: 0.0005", "weight_decay: 5e-4")
    (project / "params.yaml").write_text(text)
    content = params_file.read(project / "params.yaml")
    assert params_file.validated(content).optimiser.weight_decay == 0.0005


def test_more_clusters_than_images_is_found_before_pretraining(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed / "artifacts", tmp_path / "artifacts")
    write_params(tmp_path, {"clusters": 5000})
    assert "clusters = 5000 is larger than the number of images (1797)" in refused(tmp_path, "pretrain")


def test_flags_override_the_file_and_the_file_the_declaration(packed: Path) -> None:
    shown = run_conr(packed, "pretrain", "--help").stdout
    assert "[default: 2]" in shown  # the file's epochs; the declaration says 800
    result = run_conr(packed, "pretrain", "--epochs", "1")
    assert result.returncode == 0, result.stderr
    assert len((packed / "artifacts/pretrain/log.csv").read_text().splitlines()) == 2


def test_stages_in_the_wrong_order_say_what_to_run(project: Path, packed: Path, tmp_path: Path) -> None:
    assert "artifacts/store does not exist; run conr prepare first" in refused(project, "pretrain")
    shutil.copytree(packed / "artifacts/store", tmp_path / "artifacts/store")
    assert "artifacts/pretrain/weights.safetensors does not exist" in refused(tmp_path, "finetune")
    assert "artifacts/seeds/seeds.json is missing" in refused(tmp_path, "extract")
    assert "artifacts/embeddings/embedded.json is missing" in refused(tmp_path, "evaluate")


def test_weights_of_another_framework_are_refused(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed / "artifacts/store", tmp_path / "artifacts/store")
    write_params(tmp_path)
    params = params_file.validated(params_file.read(tmp_path / "params.yaml"))
    untrained = fresh_model(
        PretrainStage(network=params.network, host=params.host), open_store(packed / "artifacts/store").manifest
    )
    save_weights(tmp_path / "artifacts/pretrain/weights.safetensors", *untrained)
    message = refused(tmp_path, "finetune", "--framework", "simsiam")
    assert "was trained with host.framework = byol, not simsiam; run conr pretrain again" in message
    assert not (tmp_path / "artifacts/finetune").exists()


def test_a_truncated_store_is_refused(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed / "artifacts/store", tmp_path / "artifacts/store")
    write_params(tmp_path)
    images = tmp_path / "artifacts/store/images.npy"
    images.write_bytes(images.read_bytes()[:-1000])
    assert "artifacts/store is not a whole store" in refused(tmp_path, "pretrain")


def test_a_loss_that_is_not_finite_stops_and_names_the_epoch(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed / "artifacts/store", tmp_path / "artifacts/store")
    write_params(tmp_path)
    message = refused(tmp_path, "pretrain", "--base-learning-rate", "1e30")
    assert "pretrain: the loss is not a finite number in epoch 1 of 2" in message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "does not exist"),
        (lambda folder: folder.mkdir(), "holds no image at any depth"),
        (lambda folder: half_broken(folder), "2 of 4 images cannot be read (50%)"),
    ],
    ids=["missing", "empty", "half broken"],
)
def test_folders_that_cannot_be_used_are_refused(project: Path, make: Any, message: str) -> None:
    make(project / "photos")
    assert message in refused(project, "prepare", "--source", "folder", "--path", "photos", "--labels", "none")
    assert not (project / "artifacts/store").exists()


def half_broken(folder: Path) -> None:
    folder.mkdir()
    for number in range(2):
        pixels = np.full((9, 9, 3), 100 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"good{number}.png")
        (folder / f"bad{number}.png").write_bytes(b"\x89PNG")


def test_networks_that_do_not_fit_into_memory_are_one_message(packed: Path) -> None:
    message = refused(packed, "pretrain", "--hidden", "10000000000000")  # a petabyte
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
    stage: str, error: Exception, expected: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(importlib.import_module(f"stages.{stage}"), "run", failing)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # SIGTERM goes on to end these tests
    with pytest.raises(type(expected), match=f"^{expected}$"):
        run_stage(stage)


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


def test_a_full_disk_while_training_says_so(packed: Path, small_disk: Path, tmp_path: Path) -> None:
    shutil.copytree(packed / "artifacts/store", tmp_path / "artifacts/store")
    write_params(tmp_path)
    (tmp_path / ".conr").symlink_to(small_disk)  # the checkpoints go to the small disk
    assert "the disk is full" in refused(tmp_path, "pretrain")
    assert not list(small_disk.rglob("state.pt"))


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["prepare"],
        ["pretrain"],
        ["finetune"],
        ["extract"],
        ["evaluate"],
        ["assign"],
        ["preset"],
        ["ablate"],
        ["sweep"],
        ["estimate"],
    ],
)
def test_help_teaches_and_loads_nothing_heavy(command: list[str], conr: Conr) -> None:
    result = conr(*command, "--help")
    assert result.returncode == 0
    assert "Usage: conr" in result.stdout
    heavy = {"torch", "numpy", "faiss", "sklearn", "onnxruntime", "matplotlib", "PIL"}
    if not set(STAGES).intersection(command):
        heavy |= {"yaml", "rich.progress"}  # for params.yaml, and for what runs
    if not command:
        heavy |= {"pydantic"}  # for the flags of the stages; Typer itself takes it for those of the others
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['conr', *{command}, '--help']\n"
        "try: runpy.run_module('stages.cli', run_name='__main__'); from stages.cli import app; app()\n"
        "except SystemExit: pass\n"
        f"heavy = {heavy} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr


def test_help_works_with_a_broken_params_file(project: Path, conr: Conr) -> None:
    (project / "params.yaml").write_text("k: [1,")
    result = conr("finetune", "--help")
    assert result.returncode == 0
    assert "--k1" in result.stdout


def test_output_is_quiet_without_a_terminal(conr: Conr) -> None:
    result = conr("prepare")
    assert result.stderr == ""
    assert result.stdout.splitlines()[0].endswith("from scikit-learn's digits in artifacts/store")


def test_manifest_says_what_was_skipped(project: Path, conr: Conr) -> None:
    half_broken(project / "photos")
    (project / "photos/notes.txt").write_text("no image")
    result = conr("prepare", "--source", "folder", "--path", "photos", "--labels", "none", "--max-broken", "0.5")
    assert result.returncode == 0, result.stderr
    manifest = json.loads((project / "artifacts/store/manifest.json").read_text())
    assert manifest["files"] == ["good0.png", "good1.png"]
    assert {file for file, _ in manifest["skipped"]} == {"bad0.png", "bad1.png", "notes.txt"}
