"""examples/quickstart.ipynb runs from its first cell to its last, and shows its pictures."""

import base64
import re

import pytest

from tests.helpers import ROOT

nbformat = pytest.importorskip("nbformat")
PATH = ROOT / "examples" / "quickstart.ipynb"


def test_it_runs(monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(PATH, as_version=4)
    for cell in notebook.cells:  # a shorter run
        cell.source = cell.source.replace("epochs=6, decay_epochs=(5,)", "epochs=1, decay_epochs=(), limit_train=64")
        cell.source = cell.source.replace("val_size=137", "val_size=16").replace("x[:20], y[:20]", "x[:4], y[:4]")
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": PATH.parent}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2 and all(base64.b64decode(png)[:4] == b"\x89PNG" for png in pictures)
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert re.search(r"^PGD-20: \d+% of 100 images", text, re.MULTILINE)
    (clean, robust) = re.search(r"^shipped: clean (\d+)%, robust at most (\d+)%$", text, re.MULTILINE).groups()
    assert int(robust) <= int(clean) == 100


def test_it_is_saved_without_outputs():
    cells = nbformat.read(PATH, as_version=4).cells
    assert not [cell for cell in cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)]
