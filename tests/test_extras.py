"""Optional dependencies are asked for in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from torch_manualbp._extras import require


def test_returns_the_module() -> None:
    assert require("json.decoder", "examples") is sys.modules["json.decoder"]


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.inner"])
def test_names_what_is_missing_and_the_command(module: str) -> None:
    with pytest.raises(ImportError) as caught:
        require(module, "plots")
    assert str(caught.value) == 'no_such_package is not installed; to install it: pip install "torch-manualbp[plots]"'
    assert caught.value.name == "no_such_package"


def test_a_package_that_lacks_another_speaks_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lacking.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'no_such_package'$"):
        require("lacking", "examples")
