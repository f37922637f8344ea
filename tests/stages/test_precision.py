"""extract.precision: what int8 changes in a run, and that everything that shows results says so."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import pytest
from project import run_conr, write_params

from conr import quantisation
from conr.errors import UserError
from conr.export import PROVIDERS, open_session, properties
from conr.parameters import EvaluateStage, Extract, ExtractStage
from conr.progress import silent
from stages import evaluate, extract, params_file
from stages.paths import EMBEDDED, EMBEDDINGS, ENCODER, PRETRAINED_EMBEDDINGS, REPORT, SUMMARY

INT8 = ExtractStage(device="cpu", extract=Extract(precision="int8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that ran up to extraction in float32."""
    folder = tmp_path_factory.mktemp("precision")
    write_params(folder)
    for stage in ("prepare", "pretrain", "finetune", "extract"):
        result = run_conr(folder, stage)
        assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def project(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """It is the current folder."""
    monkeypatch.chdir(finished)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return finished


def made_by(encoder: bytes, precision: str) -> dict[str, Any]:
    """What extract says of its embeddings."""
    return {"seeds": [0], "precision": precision, "encoder": hashlib.sha256(encoder).hexdigest()}


def test_a_refused_int8_encoder_leaves_the_earlier_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "SIMILARITY", 1.01)
    before = ENCODER.read_bytes()
    with pytest.raises(UserError, match=r"It is refused; use extract\.precision = float32"):
        extract.run(INT8, silent)
    assert ENCODER.read_bytes() == before
    assert json.loads(EMBEDDED.read_text()) == made_by(before, "float32")


def test_embeddings_of_two_runs_are_not_taken_for_those_of_one(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(project, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")

    def stopping(session: object, images: object, path: Path, *rest: object) -> None:
        if path == EMBEDDINGS:
            raise KeyboardInterrupt

    monkeypatch.setattr(extract, "embed", stopping)
    with pytest.raises(KeyboardInterrupt):
        extract.run(ExtractStage(device="cpu", extract=Extract()), silent)
    params = params_file.validated(params_file.read())
    with pytest.raises(UserError, match=f"{EMBEDDED} is missing .*; run conr extract again"):
        evaluate.run(params_file.view_of(EvaluateStage, params), silent)


def test_int8_embeds_nearly_alike_and_is_named_everywhere(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quantisation, "SIMILARITY", 0.95)  # features of two epochs are little more than noise
    before = {path: np.load(path) for path in (EMBEDDINGS, PRETRAINED_EMBEDDINGS)}
    assert properties(open_session(ENCODER, "cpu"))["precision"] == "float32"

    assert f"encoder in {ENCODER}, int8, mean cosine similarity 0.9" in extract.run(INT8, silent)
    assert capfd.readouterr() == ("", ""), "onnxruntime's quantiser has nothing to say to a user"
    for path, expected in before.items():
        cosines = (np.load(path) * expected).sum(axis=1)
        assert 0.95 < cosines.mean() < 0.99999, path
    assert json.loads(EMBEDDED.read_text()) == made_by(ENCODER.read_bytes(), "int8")
    assert properties(open_session(ENCODER, "cpu")) == {"image_size": 8, "fit": "crop", "precision": "int8"}

    params = params_file.validated(params_file.read())
    evaluate.run(params_file.view_of(EvaluateStage, params), silent)
    assert "<dt>precision of the encoder</dt><dd>int8</dd>" in REPORT.read_text()
    assert "All features come from int8 encoders (extract.precision)." in SUMMARY.read_text()


@pytest.mark.skipif(PROVIDERS["cuda"] in onnxruntime.get_available_providers(), reason="onnxruntime has CUDA")
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_what_was_trained_on_a_gpu_is_extracted_on_the_cpu_where_onnxruntime_has_no_other(
    project: Path, precision: Literal["float32", "int8"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantisation, "SIMILARITY", 0.95)
    summary = extract.run(ExtractStage(device="cuda", extract=Extract(precision=precision)), silent)
    assert ", run by CPUExecutionProvider; 1,797 embeddings in" in summary
    assert properties(open_session(ENCODER, "cpu"))["precision"] == precision
