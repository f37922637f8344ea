"""extract.precision: what int8 changes in a run, and that everything that shows results says so."""

import json
import re
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import onnxruntime
import pytest
from project import FINISHED, SEEDS, run_stages, tiny

from conr.embedding import int8
from conr.embedding.engines.settings import LOCAL
from conr.embedding.session import PROVIDERS, Properties, open_session, properties
from conr.errors import UserError
from conr.files import load_json, sha256_of
from conr.models.siamese import Network
from conr.observer import SILENT
from conr.parameters import ExtractStage
from conr.parameters.groups import Extract
from conr.pipeline import extract as extracting
from conr.pipeline.extract import extract
from conr.pipeline.records import write_record
from conr.pipeline.workspace import RECORD, Record, Workspace
from conr.stages import extract as command

INT8 = ExtractStage(device="cpu", extract=Extract(precision="int8"))
FIRST = SEEDS[0]
PARAMETERS = tiny({**FINISHED, "seeds": [FIRST]})


@pytest.fixture(scope="module")
def exported() -> dict[bytes, bytes]:
    """The ONNX files that tests of this module have exported, by the weights."""
    return {}


@pytest.fixture(autouse=True)
def _export_once(exported: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Export each network once: the tests are about what follows."""
    export = extracting.export

    def once(network: Network, size: int, path: Path, properties: Properties) -> None:
        key = b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values())
        if key not in exported:
            export(network, size, path, properties)
            exported[key] = path.read_bytes()
        path.write_bytes(exported[key])

    monkeypatch.setattr(extracting, "export", once)


@pytest.fixture
def refined(finished: Workspace, workspace: Workspace) -> Workspace:
    """A workspace of its own that ran up to finetune, with one seed."""
    workspace.borrow(finished, "artifacts/store", "artifacts/pretrain", f"artifacts/finetune/{FIRST}")
    record = load_json(finished.refined / RECORD, Record, "")
    files = workspace.finetuned(FIRST)
    write_record(workspace.refined, [files.weights, files.log], [FIRST], record.made_from)
    return workspace


@pytest.fixture
def extracted(finished: Workspace, refined: Workspace) -> Workspace:
    """The same after extract, in float32."""
    refined.encoder.write_bytes(finished.encoder.read_bytes())
    refined.embedded.mkdir()
    for seed in (None, FIRST):
        refined.embeddings(seed).write_bytes(finished.embeddings(seed).read_bytes())
    record = load_json(finished.embedded / RECORD, Record, "")
    files = [refined.embeddings(), refined.embeddings(FIRST)]
    write_record(refined.embedded, files, [FIRST], record.made_from, record.precision)
    return refined


def record(workspace: Workspace) -> Any:
    return json.loads((workspace.embedded / RECORD).read_text())


def test_an_encoder_says_what_it_was_made_for(finished: Workspace) -> None:
    assert properties(open_session(finished.encoder, "cpu")) == Properties(
        image_size=8, fit="crop", precision="float32"
    )


def test_a_refused_int8_encoder_leaves_the_earlier_one(
    extracted: Workspace, finished: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "SIMILARITY", 1.01)
    with pytest.raises(UserError, match=r"It is refused; use extract\.precision = float32"):
        extract(extracted, INT8)
    assert extracted.encoder.read_bytes() == finished.encoder.read_bytes()


def test_embeddings_of_two_runs_are_not_taken_for_those_of_one(
    extracted: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(extracting.StoreEmbedding, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        extract(extracted, ExtractStage(device="cpu"))
    record = re.escape(str(extracted.embedded / RECORD))
    with pytest.raises(UserError, match=f"^{record} is missing .*; run conr extract again"):
        run_stages(extracted, PARAMETERS, "evaluate")


def test_int8_embeds_nearly_alike_and_is_named_everywhere(
    finished: Workspace,
    extracted: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(int8, "SIMILARITY", 0.95)  # features of few epochs are little more than noise
    summary = command.run(extracted, INT8, LOCAL, SILENT)
    assert f"encoder in {extracted.encoder}, int8, mean cosine similarity 0.9" in summary
    assert capfd.readouterr() == ("", ""), "onnxruntime's quantizer has nothing to say to a user"
    for seed in (None, FIRST):
        cosines = (np.load(extracted.embeddings(seed)) * np.load(finished.embeddings(seed))).sum(axis=1)
        assert 0.95 < cosines.mean() < 0.99999, seed
    assert record(extracted)["made_from"]["encoder"] == sha256_of(extracted.encoder)
    assert (record(extracted)["seeds"], record(extracted)["precision"]) == ([FIRST], "int8")
    assert properties(open_session(extracted.encoder, "cpu")) == Properties(image_size=8, fit="crop", precision="int8")

    run_stages(extracted, PARAMETERS, "evaluate")
    assert "<dt>precision of the encoder</dt><dd>int8</dd>" in extracted.report.read_text()
    assert "All features come from int8 encoders (extract.precision)." in extracted.summary.read_text()
    assert "<dt>precision of the encoder</dt><dd>float32</dd>" in finished.report.read_text()
    assert "encoders (extract.precision)" not in finished.summary.read_text()


@pytest.mark.skipif(PROVIDERS["cuda"] in onnxruntime.get_available_providers(), reason="onnxruntime has CUDA")
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_what_was_trained_on_a_gpu_is_extracted_on_the_cpu_where_onnxruntime_has_no_other(
    refined: Workspace,
    precision: Literal["float32", "int8"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(int8, "SIMILARITY", 0.95)
    parameters = ExtractStage(device="cuda", extract=Extract(precision=precision))
    summary = command.run(refined, parameters, LOCAL, SILENT)
    assert ", run by CPUExecutionProvider; 1,797 embeddings in" in summary
    assert properties(open_session(refined.encoder, "cpu")).precision == precision
    assert {path.name for path in refined.embedded.iterdir()} == {"pretrained.npy", f"{FIRST}.npy", RECORD}
