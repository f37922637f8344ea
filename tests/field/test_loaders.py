"""Every kind of file has one loader: damage is one line for the user, never a trace, a hang or another result."""

import getpass
import os
import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from forked import run_conr
from hypothesis import given, settings
from hypothesis import strategies as st
from project import BIN, ROOT, tiny, write_params

from conr.data.store import open_store
from conr.embedding.session import open_session
from conr.errors import Note, UserError
from conr.files import load_array, save_array
from conr.parameters import EvaluateStage, FinetuneStage, PretrainStage
from conr.pipeline import prepare as preparing
from conr.pipeline.checks import check_data
from conr.pipeline.params_file import assignments, read
from conr.pipeline.pretrain import pretrain
from conr.pipeline.workspace import Workspace
from conr.stages.cli import main
from conr.training.checkpoints import Checkpoint

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


def line_of(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        "seed: 2024-13-45\n",
        f"seed: {'9' * 5000}\n",
        "seed: " + "[" * 500 + "]" * 500 + "\n",
        'seed: !!int ""\n',
        "seed: 0\nseed: 1\n",
        "seed: &a [*a, *a]\n",
        "\n".join(
            [
                "a: &a [0, 0]",
                *(
                    f"{name}: &{name} [*{of}, *{of}]"
                    for of, name in zip("abcdefghijklmnop", "bcdefghijklmnopq", strict=True)
                ),
            ]
        ),
        "\x00",
        "- 1\n",
    ],
    ids=["date", "digits", "brackets", "tag", "twice", "itself", "bomb", "zero byte", "list"],
)
def test_a_params_file_that_cannot_be_read_is_one_line_and_help_works(tmp_path: Path, content: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(content)
    with pytest.raises(UserError) as error:
        read(file)
    assert line_of(error).startswith(str(file))
    assert run_conr(tmp_path, "prepare", "--help").returncode == 0


@given(st.binary(max_size=60), st.integers(0, 2000), st.integers(0, 60))
@settings(max_examples=150, deadline=None)
def test_a_mutated_params_file_is_read_or_refused_on_one_line(insert: bytes, position: int, removed: int) -> None:
    content = (ROOT / "params.yaml").read_bytes()
    with TemporaryDirectory() as folder:
        file = Path(folder, "params.yaml")
        file.write_bytes(content[:position] + insert + content[position + removed :])
        said = ""
        try:
            read(file)
        except UserError as error:
            said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize("value", ["!!int ''", "2024-13-45", "[" * 500, "9" * 5000])
def test_a_value_on_the_command_line_that_is_no_yaml_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"^--set k1=.* is not valid YAML$"):
        assignments([f"k1={value}"])


def headed(rows: str) -> bytes:
    """An .npy file whose header names a shape."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, 3), }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + ROWS.tobytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        headed("10**30"),
        headed(str(10**30)),
        headed("-1"),
        headed("5"),
        headed("True"),
        b"PK\x03\x04",
    ],
)
def test_a_file_that_is_no_whole_array_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError) as error:
        load_array(tmp_path / "a.npy", "run it again")
    assert line_of(error).startswith(f"{tmp_path}/a.npy ")
    assert line_of(error).endswith("; run it again")


@pytest.mark.parametrize(
    "array",
    [
        ROWS.astype(">f4"),
        ROWS.astype(np.int64),
        ROWS.astype(np.float64),
        ROWS[0],
        np.full_like(ROWS, np.nan),
        np.full_like(ROWS, np.inf),
    ],
)
def test_an_array_of_another_kind_is_refused(tmp_path: Path, array: Any) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=r"a\.npy holds .*; run it again$"):
        load_array(tmp_path / "a.npy", "run it again")


def test_a_whole_array_is_loaded(tmp_path: Path) -> None:
    save_array(tmp_path / "a.npy", ROWS)
    np.testing.assert_array_equal(load_array(tmp_path / "a.npy", ""), ROWS)


@pytest.mark.parametrize("damage", ["cut", "a bit", "head", "empty", "another file", "its line only"])
def test_a_damaged_checkpoint_is_set_aside_and_training_starts_anew(tmp_path: Path, damage: str) -> None:
    checkpoint = Checkpoint(tmp_path / "training")
    checkpoint.save({"history": [{"epoch": 1}], "model": {"w": torch.arange(1000.0)}})
    content = bytearray(checkpoint.file.read_bytes())
    content = {
        "cut": content[:-100],
        "a bit": content[:-2000] + bytes([content[-2000] ^ 1]) + content[-1999:],
        "head": b"x" + content,
        "empty": b"",
        "another file": b"PK\x03\x04" * 100,
        "its line only": content.split(b"\n")[0] + b"\n",
    }[damage]
    checkpoint.file.write_bytes(content)
    with pytest.warns(
        Note, match=rf"^{checkpoint.file} is damaged \(.*\); it is now .*damaged, and training starts anew$"
    ):
        assert checkpoint.load() is None
    assert not checkpoint.file.exists()
    assert checkpoint.load() is None


def test_a_checkpoint_says_how_many_epochs_it_holds(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "training")
    assert checkpoint.epochs == 0
    checkpoint.save({"history": [{"epoch": 1}, {"epoch": 2}]})
    assert checkpoint.epochs == 2
    checkpoint.file.write_bytes(b"nonsense")
    assert checkpoint.epochs == 0


def damaged_main() -> None:
    """Run the command with a checkpoint that something has damaged."""
    load = Checkpoint.load

    def damaged(self: Checkpoint) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file.write_bytes(b"nonsense")
        return load(self)

    Checkpoint.load = damaged  # type: ignore[method-assign]
    main()


def test_the_note_on_a_damaged_checkpoint_reaches_the_user(workspace: Workspace) -> None:
    parameters = tiny({"pretrain.epochs": 1})
    write_params(workspace.root, {"pretrain.epochs": 1})
    expected = pretrain(workspace, PretrainStage.of(parameters))
    weights = workspace.pretrained.weights.read_bytes()
    done = run_conr(workspace.root, "pretrain", main=damaged_main)
    assert done.returncode == 0, done.stderr
    (note,) = [line for line in done.stderr.splitlines() if "damaged" in line]
    assert re.fullmatch(r"Note: .*/state\.pt is damaged \(.*\); it is now .*\.damaged, and training starts anew", note)
    assert len(expected) == 1
    assert workspace.pretrained.weights.read_bytes() == weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network.bn_group": 1}, "network.bn_group = 1 leaves nothing to normalize by"),
        ({"pretrain.epochs": 10**9}, "pretrain.epochs = 1000000000 should be less than or equal to 1000000"),
        ({"evaluate.n_init": 10**18}, "evaluate.n_init"),
        ({"neighborhood.layers": 10**6}, "neighborhood.layers"),
        ({"framework.queue": 10**12}, "framework.queue"),
    ],
)
def test_parameters_that_cannot_work_are_refused_before_anything_runs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        tiny(changes)
    assert message in line_of(error)


def test_parameters_are_compared_with_what_k_means_sees(packed: Workspace) -> None:
    manifest = open_store(packed.store).manifest
    check_data(EvaluateStage.of(tiny({"clusters": 1797})), manifest)
    with pytest.raises(UserError, match="clusters = 1798"):
        check_data(FinetuneStage.of(tiny({"clusters": 1798})), manifest)
    scattered = {"pretrain.prototypes": 1798, "pretrain.batch_size": 100}
    check_data(PretrainStage.of(tiny(scattered)), manifest)
    with pytest.raises(UserError, match=r"pretrain\.prototypes = 1798"):
        check_data(PretrainStage.of(tiny({**scattered, "pretrain.scattering": 0.1})), manifest)


def broken_main() -> None:
    """Run the command with a fault in it."""

    def broken(*_: object) -> NoReturn:
        raise ZeroDivisionError("seven by zero")

    preparing.pack = broken
    main()


def test_an_unexpected_error_is_one_line_and_a_file_with_the_trace(project: Path) -> None:
    done = run_conr(project, "prepare", main=broken_main)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    found = re.fullmatch(
        r"Error: ZeroDivisionError: seven by zero\. This is a fault of conr: please report it with (.*\.txt); .*", line
    )
    assert found is not None, line
    trace = Path(found[1])
    assert "Traceback" in trace.read_text()
    trace.unlink()


def test_a_file_where_a_library_wants_a_folder_says_what_to_do(workspace: Workspace, tmp_path: Path) -> None:
    write_params(workspace.root)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    for user in (getpass.getuser(), "root"):
        (temporary / f"torchinductor_{user}").touch()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)  # PyTorch sets it in the process of the tests
    command = [str(BIN / "conr"), "pretrain"]
    done = subprocess.run(command, cwd=workspace.root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: {temporary}/torchinductor_")
    assert line.endswith("rename it, or set TMPDIR if it is in a temporary folder")


def test_a_damaged_encoder_is_one_line(encoder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = bytearray(encoder.read_bytes())
    content[len(content) // 2 :] = b""
    (tmp_path / "encoder.onnx").write_bytes(content)
    with pytest.raises(UserError) as error:
        open_session(tmp_path / "encoder.onnx", "cpu")
    assert line_of(error).endswith("; run conr extract again")
    assert capfd.readouterr().out == ""
