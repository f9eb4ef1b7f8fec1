"""The suite's warnings: all in the log and the report, one of each kind on standard error."""

import warnings

from pyautoattack import checks

from evaluation.autoattack.log import of_each_kind, suite_log
from evaluation.autoattack.suite import LOGGER


def test_warnings_of_each_kind_are_shown_once(tmp_path, capsys):
    path, warned = tmp_path / "autoattack.log", []
    with suite_log(path, resumed=False, warn=warned.append):
        LOGGER.warning("there are 3 points with zero gradient!")
        LOGGER.warning("there are 17 points with zero gradient!")
        LOGGER.info("robust accuracy after APGD-CE: WARNING 3%")
    with suite_log(path, resumed=True, warn=warned.append):
        LOGGER.warning("Square Attack has decreased the robust accuracy of 0.53%.")
    assert of_each_kind(warned) == [
        "there are 3 points with zero gradient!", "Square Attack has decreased the robust accuracy of 0.53%.",
    ]  # fmt: skip
    assert capsys.readouterr().err.count("zero gradient") == 1
    assert path.read_text().count("WARNING there are") == 2
    with suite_log(path, resumed=False, warn=warned.append):
        LOGGER.info("afresh")
    assert path.read_text().count("\n") == 1 and "afresh" in path.read_text()


def test_a_process_that_does_not_print_collects_warnings(capsys):
    warned, handlers = [], LOGGER.handlers.copy()
    with suite_log(None, resumed=False, warn=warned.append):
        LOGGER.warning("another")
    assert warned == ["another"] and capsys.readouterr().err == "" and LOGGER.handlers == handlers


def test_python_warnings_of_the_suite_are_collected(tmp_path, recwarn):
    """Its checks warn as Python does; warnings of others are left alone."""
    warned, acc = [], {"clean": 0.9, "apgd-ce": 0.5, "square": 0.4}
    with suite_log(tmp_path / "autoattack.log", resumed=False, warn=warned.append):
        checks.check_square_sr(acc)
        warnings.warn("of torch", UserWarning, stacklevel=1)
    (warning,) = warned
    assert warning.startswith("Square Attack has decreased the robust accuracy of 10.00%")
    checks.check_square_sr({**acc, "square": 0.3})  # not collected outside
    assert len(warned) == 1
    assert [str(shown.message)[:8] for shown in recwarn] == ["of torch", "Square A"]


def test_any_text_can_be_logged(tmp_path, capsys):
    """A path that is not UTF-8, and a disk that is full."""
    with suite_log(tmp_path / "autoattack.log", resumed=False, warn=print):
        LOGGER.info("checkpoint \udcff.pt")
    assert "checkpoint \\udcff.pt" in (tmp_path / "autoattack.log").read_text()
    (tmp_path / "full").symlink_to("/dev/full")
    with suite_log(tmp_path / "full", resumed=True, warn=print):
        LOGGER.info("nowhere")
    assert capsys.readouterr() == ("", "")
