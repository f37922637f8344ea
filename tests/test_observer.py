"""An observer that overrides nothing does nothing, and a subclass is called in order."""

import pytest
from recorder import Recorder

from conr.observer import SILENT, Observer


@pytest.mark.parametrize("observer", [SILENT, Observer()])
def test_the_base_does_nothing_and_takes_every_call(observer: Observer) -> None:
    with observer.task("pretrain", 10, done=3):
        assert observer.step_done() is None
        assert observer.step_done(5, note="2 broken") is None
        assert observer.traced("loss", 0.5) is None
    assert observer.epoch_done({"epoch": 1, "loss": 0.5}) is None


def test_an_exception_inside_a_task_reaches_the_caller() -> None:
    with pytest.raises(KeyboardInterrupt), SILENT.task("pretrain", 10):
        raise KeyboardInterrupt


def test_a_subclass_is_called_in_order() -> None:
    recorder = Recorder()
    with recorder.task("pretrain", 2):
        recorder.step_done()
        recorder.epoch_done({"epoch": 1})
        recorder.traced("loss", 0.5)
    assert recorder.events == ["start", "step", "epoch", "end"]
    assert (recorder.tasks, recorder.steps, recorder.rows) == ([("pretrain", 2, 0)], [(1, "")], [{"epoch": 1}])
