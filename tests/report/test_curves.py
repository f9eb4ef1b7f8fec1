"""Curves of several training runs in one picture."""

import json

import pytest

from report.curves import main
from utils.errors import UserError


def test_two_runs_in_one_picture(tmp_path, capsys):
    for name, gain in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        lines = [
            {"epoch": e, "loss": 3.0 / e, "student_clean": 10.0 * e, "student_robust": 5.0 * e + gain}
            for e in (1, 2, 3)
        ]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "curves.png"
    main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "a: epoch 3, clean 30.00%, PGD-20 16.00%",
        "b: epoch 3, clean 30.00%, PGD-20 17.00%",
    ]
    png = out.read_bytes()
    assert png[:4] == b"\x89PNG" and int.from_bytes(png[16:20], "big") == 12 * 160
    with pytest.raises(UserError, match=r"holds no finished epoch \(metrics\.jsonl\)"):
        main([str(tmp_path)])
    with pytest.raises(UserError, match=r"curves\.pdf must be a FILE\.png"):
        main([str(tmp_path / "a"), "--out", "curves.pdf"])
