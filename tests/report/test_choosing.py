"""The figure of the choice of K shows every curve, every choice and the proposal."""

from pathlib import Path

import pytest
from matplotlib.colors import to_hex

from conr.clustering import Proposal
from conr.clustering.choose import FROM
from conr.report.choosing import choose_figure
from conr.report.figures import ORANGE, save

PROPOSAL = Proposal(
    clusters=3,
    candidates=(2, 3, 5),
    curves={"prediction strength": (0.9, 0.85, None), "eigenvalue ratio": (1.1, 2.0, 1.3), "silhouette": (0.1,) * 3},
    choices={"prediction strength": 3, "eigenvalue ratio": 3, "silhouette": None},
    criterion="eigenvalue ratio",
    clear=True,
)


def test_a_panel_per_criterion_holds_its_curve_and_the_deciding_one_is_on_top() -> None:
    first, second, third = choose_figure(PROPOSAL).axes
    assert first.get_title("left") == "Eigenvalue ratio: K = 3, proposed"
    assert first.lines[0].get_xydata().tolist() == [[2, 1.1], [3, 2.0], [5, 1.3]]
    assert second.get_title("left") == "Prediction strength: K = 3"
    assert second.lines[0].get_xydata()[:2].tolist() == [[2, 0.9], [3, 0.85]]
    assert list(second.lines[1].get_ydata()) == [FROM["prediction strength"]] * 2
    assert third.get_title("left") == "Silhouette: no K"


def test_the_proposed_k_is_a_line_in_every_panel_and_choices_are_dots() -> None:
    for axes, dots in zip(choose_figure(PROPOSAL).axes, ([[3, 2.0]], [[3, 0.85]], []), strict=True):
        marked = [line for line in axes.lines if to_hex(line.get_color()) == ORANGE.lower()]
        assert [list(line.get_xdata()) for line in marked if line.get_linestyle() == "--"] == [[3, 3]]
        assert [point for line in marked if line.get_marker() == "o" for point in line.get_xydata().tolist()] == dots


def test_an_unclear_proposal_says_so() -> None:
    unclear = PROPOSAL.model_copy(update={"clear": False})
    assert "nothing speaks clearly for any K" in choose_figure(unclear).axes[0].get_title("left")


@pytest.mark.parametrize("candidates", [(1,), tuple(range(2, 41))])
def test_it_is_drawn_for_one_candidate_and_for_many(candidates: tuple[int, ...], tmp_path: Path) -> None:
    proposal = Proposal(
        clusters=candidates[0],
        candidates=candidates,
        curves={"silhouette": (None,) * len(candidates)},
        choices={"silhouette": None},
        criterion="silhouette",
        clear=False,
    )
    save(choose_figure(proposal), tmp_path / "choosing.png")
    assert (tmp_path / "choosing.png").stat().st_size > 5000
