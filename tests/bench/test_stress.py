"""Some trials of the hour of kills, full disks, damaged files and two of everything at once."""

from pathlib import Path

import pytest
import stress

from conr.files import load_table

pytestmark = pytest.mark.bench


@pytest.mark.timeout(600)
def test_nothing_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["stress.py", "--trials", "3", "--state", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        stress.main()
    trials = load_table(tmp_path / "trials.csv", "")
    assert [trial for trial in trials if trial["outcome"] != "survived"] == []
    assert ended.value.code == 0
    assert [trial["trial"].split()[0] for trial in trials] == ["kill", "damage", "fuzz"]
    assert "| kind | tried | survived | lost |" in capsys.readouterr().out


def test_what_differs_is_lost(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name / "artifacts").mkdir(parents=True)
        (tmp_path / name / "artifacts/a.npy").write_text(name)
    stress.same(tmp_path / "one", tmp_path / "one")
    with pytest.raises(stress.LostError, match=r"artifacts/a\.npy differs"):
        stress.same(tmp_path / "one", tmp_path / "other")
