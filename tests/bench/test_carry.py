"""A folder that was packed into parts comes back as it was, or not at all."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20


def carry(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run bench/carry.py."""
    command = [sys.executable, str(ROOT / "bench/carry.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """70 MiB of noise and a small file, packed."""
    (tmp_path / "state/deep").mkdir(parents=True)
    (tmp_path / "state/deep/state.pt").write_bytes(np.random.default_rng(0).bytes(70 * MIB))
    (tmp_path / "state/log.csv").write_text("epoch,loss\n")
    result = carry("pack", tmp_path / "state", tmp_path / "parts")
    assert result.stdout == "5 parts, 2 calls\n"
    return tmp_path / "parts"


def test_a_folder_comes_back_as_it_was(parts: Path, tmp_path: Path) -> None:
    assert [len(list(folder.iterdir())) for folder in sorted(parts.iterdir())] == [4, 1]
    assert max(path.stat().st_size for path in parts.rglob("part-*")) == 15.5 * MIB
    assert carry("unpack", parts, tmp_path / "back").returncode == 0
    for name in ("deep/state.pt", "log.csv"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "state" / name).read_bytes()


def test_packing_again_leaves_no_part_of_before(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "state/deep/state.pt").unlink()
    assert carry("pack", tmp_path / "state", parts).stdout == "1 parts, 1 calls\n"
    assert [path.name[:16] for path in parts.rglob("part-*")] == ["part-000-of-001-"]


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_missing_and_damaged_parts_are_refused(parts: Path, tmp_path: Path, harm: str) -> None:
    part = next(parts.rglob("part-001-*"))
    if harm == "missing":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:-1] + b"!")
    result = carry("unpack", parts, tmp_path / "back")
    assert result.returncode == 1
    assert ("parts [0, 2, 3, 4]" if harm == "missing" else "is damaged") in result.stderr
    assert not (tmp_path / "back").exists()
