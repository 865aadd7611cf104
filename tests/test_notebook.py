"""The notebook of the examples runs, and each of its objects is displayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "examples" / "backpropagation.ipynb"

DISPLAYED = {
    "insight.picture(": "text/html",
    "with local_gradients(": "text/html",
    "layers[": "text/html",
    "explain(": "text/html",
    "insight.report(": "text/html",
    "verify.verify_model(": "text/html",
    "class Scale(": "text/html",
    "optimizer = ": "text/html",
    "class Scaled(": "text/html",
    "statistics = ": "image/png",
    "from torch_manualbp.catalogue": "text/html",
}
"""What the last line of each cell is to be displayed as."""


@pytest.mark.slow  # a kernel of its own
def test_the_notebook_runs_and_displays_its_objects(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are made by running it"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown: dict[str, Any] = {}
    for cell in codes:
        start = next((start for start in DISPLAYED if cell.source.startswith(start)), None)
        assert all(output.get("name") != "stderr" for output in cell.outputs), cell.outputs
        for output in cell.outputs:
            if output.output_type == "execute_result":
                assert start is not None, cell.source
                shown[start] = output.data
    assert shown.keys() == DISPLAYED.keys()
    for start, kind in DISPLAYED.items():
        assert kind in shown[start], (start, shown[start].keys())
        assert len(shown[start]["text/plain"]) < 200  # the plain repr is short
    assert ">0.2275</text>" in shown["insight.picture("]["text/html"]  # ∂C/∂w_22⁽²⁾
    assert "factor: it is 0.2 times the right one" in shown["class Scale("]["text/html"]
    assert "left: a subclass of torch.nn.Linear" in shown["class Scaled("]["text/html"]
    assert (tmp_path / "backpropagation.html").exists()
