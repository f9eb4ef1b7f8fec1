"""The code of docs/api.md runs as it stands there, block by block, each in five lines."""

import re
import shutil

from tests.helpers import ROOT

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL | re.MULTILINE)


def test_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(ROOT / "checkpoints" / "quickstart-digits.pt", tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)
    names, printed = {}, []
    for block in BLOCKS:
        capsys.readouterr()
        exec(compile(block, "docs/api.md", "exec"), names)
        printed.append(capsys.readouterr().out)
    parameters, attacked, measured, trained = printed
    assert parameters == "77850\n" and "# 77850" in BLOCKS[0]
    assert 0.5 < float(attacked.removeprefix("tensor(").rstrip(")\n")) <= 1
    clean, robust, shape = measured.split(maxsplit=2)
    assert float(robust) <= float(clean) == 100 and shape == "torch.Size([10, 3, 16, 16])\n"
    assert trained.splitlines()[-1].endswith(" checkpoints/notebook torch.Size([2, 10])")
    assert (tmp_path / "Logs/notebook/evaluate.state.npz").exists()
    assert names["train"](names["config"]).metrics == names["run"].metrics  # a finished run is only read


def test_each_takes_five_lines():
    assert len(BLOCKS) == 4 and all(len([line for line in block.splitlines() if line]) <= 5 for block in BLOCKS)
