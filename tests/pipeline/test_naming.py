"""Names of clusters: shown wherever clusters are, and never those of another clustering."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from clustered_run import finish, packed_photos, write_photos
from hypothesis import given
from hypothesis import strategies as st
from project import table

from conr.embedding.session import open_session
from conr.errors import Note, UserError
from conr.pipeline.clusterer import KEY, Card
from conr.pipeline.naming import COLUMNS, identity_of, load_clusters, present_names, read_names
from conr.pipeline.renaming import name_clusters
from conr.pipeline.workspace import Workspace

CLUSTERS = {"a.png": 0, "b.png": 1, "deep/=c.png": 1, "d.png": 2, "e.png": 0, "f.png": 0}
OTHERS = {**CLUSTERS, "f.png": 2}
ON_PAGE = re.compile('id="cluster-names">(.*?)</script>')


@pytest.fixture
def run(encoder: Path, tmp_path: Path) -> Workspace:
    write_photos(tmp_path / "photos", list(CLUSTERS))
    workspace = packed_photos(tmp_path, tmp_path / "photos")
    finish(workspace, encoder, CLUSTERS)
    return workspace


def write_names(workspace: Workspace, text: str, encoding: str = "utf-8") -> None:
    workspace.names.write_text(text.replace("NOW", load_clusters(workspace).identity), encoding=encoding)


def shown(workspace: Workspace) -> dict[str, str]:
    """File → the name that the table of assignments shows; the other tables are asserted to show the same."""
    rows = table(workspace.assignments)
    names = {row["file"]: row.get("name", "") for row in rows}
    explorable = pq.read_table(workspace.explorable).to_pylist()
    assert {row["file"]: row.get("name") or "" for row in explorable} == names
    facts = open_session(workspace.clusterer, "cpu").get_modelmeta().custom_metadata_map
    card = Card.model_validate_json(facts[KEY])
    assert {row["file"]: card.names.get(int(row["cluster"]), "") for row in rows} == names
    page = ON_PAGE.search(workspace.report.read_text(encoding="utf-8"))
    assert page is not None
    assert {int(number): name for number, name in json.loads(page[1]).items()} == card.names
    listed = [line for line in workspace.summary.read_text().splitlines() if line.startswith("names ")]
    assert bool(listed) == bool(card.names)
    assert all(name in listed[0] for name in card.names.values())
    return names


def named(names: dict[int, str], clusters: dict[str, int] = CLUSTERS) -> dict[str, str]:
    return {file: names.get(number, "") for file, number in clusters.items()}


def test_a_name_is_shown_everywhere_and_changed_and_removed(run: Workspace) -> None:
    before = table(run.assignments)
    assert name_clusters(run, {2: " red shoes "}) == {2: "red shoes"}
    assert shown(run) == named({2: "red shoes"})
    assert name_clusters(run, {0: "owls, white", 2: "boots"}) == {0: "owls, white", 2: "boots"}
    assert shown(run) == named({0: "owls, white", 2: "boots"})
    assert present_names(run) == {0: "owls, white", 2: "boots"}
    assert name_clusters(run, {0: "", 2: ""}) == {}
    assert shown(run) == named({})
    assert table(run.assignments) == before
    assert run.summary.read_text() == "all is well\n"


def test_the_table_of_names_has_a_row_for_each_cluster_to_be_filled_in(run: Workspace) -> None:
    assert name_clusters(run) == {}
    identity = load_clusters(run).identity
    assert table(run.names) == [dict(zip(COLUMNS, (identity, str(number), ""), strict=True)) for number in range(3)]
    run.names.write_text(run.names.read_text().replace(f"{identity},1,", f"{identity},1,cats"))
    assert name_clusters(run) == {1: "cats"}
    assert shown(run) == named({1: "cats"})


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_that_a_spreadsheet_saved_is_read(run: Workspace, separator: str, encoding: str) -> None:
    text = "cluster,name,clustering\r\n1,Käfer ,NOW\r\n\r\n0,,NOW\r\n"
    write_names(run, text.replace(",", separator), encoding)
    assert name_clusters(run) == {1: "Käfer"}


def test_a_name_that_a_spreadsheet_would_take_for_a_formula_is_text_in_the_table(run: Workspace) -> None:
    name_clusters(run, {2: "=1+2"})
    assert {row["name"] for row in table(run.assignments) if row["cluster"] == "2"} == {"'=1+2"}
    assert present_names(run) == {2: "=1+2"}


def test_names_of_another_clustering_are_not_shown_and_come_back_with_it(run: Workspace, encoder: Path) -> None:
    name_clusters(run, {0: "owls"})
    old = load_clusters(run).identity
    finish(run, encoder, OTHERS)
    new = load_clusters(run).identity
    assert new != old
    with pytest.warns(
        Note, match=rf"^{run.names} names clusters of another clustering \({old}\), not of this one \({new}\)"
    ):
        assert read_names(run, new, 3) == {}
    assert name_clusters(run, {0: "cats"}) == {0: "cats"}
    assert shown(run) == named({0: "cats"}, OTHERS)
    finish(run, encoder, CLUSTERS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert name_clusters(run) == {0: "owls"}
    assert shown(run) == named({0: "owls"})
    finish(run, encoder, OTHERS)
    assert present_names(run) == {0: "cats"}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.data())
def test_the_identity_differs_where_a_cluster_or_a_file_does(clusters: list[int], data: st.DataObject) -> None:
    files = [f"{number}.png" for number in range(len(clusters))]
    identity = identity_of(files, np.array(clusters))
    assert identity == identity_of(list(files), np.array(clusters, np.int32))
    changed = data.draw(st.integers(0, len(clusters) - 1))
    others = [number + (place == changed) for place, number in enumerate(clusters)]
    assert identity_of(files, np.array(others)) != identity
    assert identity_of([*files[:-1], "\udce4.png"], np.array(clusters)) != identity
    assert identity_of([*files[:-1], f"{files[-1]}x"], np.array(clusters)) != identity


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("NOW,3,birds", "the name birds of cluster 3 is not used: there is no such cluster; they are 0 to 2"),
        ("NOW,-1,birds", "of cluster -1 is not used: there is no such cluster"),
        ("NOW,one,birds", "of cluster one is not used: there is no such cluster"),
        ("NOW,1,birds", "the name birds of cluster 1 is not used: it has a name already, cats"),
        (f"NOW,0,{'x' * 101}", "of cluster 0 is not used: it has 101 characters, of at most 100"),
        ("NOW,0,a\x07b", "of cluster 0 is not used: it has characters that cannot be shown"),
    ],
)
def test_a_row_that_cannot_be_used_is_a_note_and_the_others_count(run: Workspace, row: str, message: str) -> None:
    write_names(run, f"clustering,cluster,name\nNOW,1,cats\n{row}\n")
    with pytest.warns(Note, match=message):
        assert present_names(run) == {1: "cats"}


@pytest.mark.parametrize("text", ["", "number,name\n1,cats\n", "clustering,cluster,name\n1,cats\n"])
def test_a_table_of_another_form_is_a_note_and_is_not_written_over(run: Workspace, text: str) -> None:
    run.names.write_text(text)
    with pytest.warns(Note, match=rf"^{run.names} .*; repair or delete it\. No names are shown"):
        assert present_names(run) == {}
    with pytest.raises(UserError, match=rf"^{run.names} .*; repair or delete it$"):
        name_clusters(run, {1: "cats"})
    assert run.names.read_text() == text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({3: "birds"}, "there is no cluster 3; they are 0 to 2"),
        ({-1: "birds"}, "there is no cluster -1; they are 0 to 2"),
        ({1: "x" * 101}, "cluster 1 cannot have the name x+: it has 101 characters, of at most 100"),
        ({1: "a\nb"}, "cluster 1 cannot have the name a\nb: it has characters that cannot be shown"),
    ],
)
def test_a_name_that_is_impossible_is_refused_and_nothing_written(
    run: Workspace, names: dict[int, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        name_clusters(run, names)
    assert not run.names.exists()
    assert shown(run) == named({})


def test_without_results_the_error_says_what_to_run(run: Workspace) -> None:
    run.assignments.unlink()
    with pytest.raises(UserError, match=rf"^{run.assignments} is missing .*; run conr evaluate, or dvc repro$"):
        name_clusters(run, {0: "owls"})
    assert not run.names.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("b.png,1,", "b.png,one,", "is damaged .*column cluster"),
        ("b.png,1,", "b.png,7,", "do not match"),
        ("b.png,1,", "x.png,1,", "is not of the images in"),
    ],
)
def test_assignments_that_do_not_belong_to_the_run_are_refused(
    run: Workspace, old: str, new: str, message: str
) -> None:
    text = run.assignments.read_text()
    assert old in text
    run.assignments.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=f"{message}.*; run conr evaluate, or dvc repro$"):
        load_clusters(run)


def test_results_without_the_further_files_are_named_all_the_same(run: Workspace) -> None:
    others = (run.explorable, run.clusterer, run.report, run.summary)
    for path in others:
        path.unlink()
    name_clusters(run, {0: "owls"})
    assert {row["name"] for row in table(run.assignments) if row["cluster"] == "0"} == {"owls"}
    assert not any(path.exists() for path in others)


def test_a_page_of_an_older_version_stays_and_a_note_says_how_it_shows_the_names(run: Workspace) -> None:
    run.report.write_text("<html>")
    with pytest.warns(Note, match=rf"^{run.report} is of an older version .* after conr evaluate, or dvc repro$"):
        name_clusters(run, {0: "owls"})
    assert run.report.read_text() == "<html>"
