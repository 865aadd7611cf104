"""What an installed package is to do, where there is nothing of its repository: run by .ci/release."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import torch_manualbp
from torch_manualbp import insight, nn
from torch_manualbp.lightning import MLP, ManualBackpropModule

torch.manual_seed(0)
where = Path(torch_manualbp.__file__).parent
assert "site-packages" in where.parts, f"{where} is no installation"
assert (where / "py.typed").exists()
model, x, y = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), torch.randn(8, 4), torch.randint(2, (8,))

step = torch_manualbp.TrainStep(model, F.cross_entropy, torch.optim.AdamW(model.parameters(), lr=0.1))
losses = [step(x, y).item() for _ in range(50)]
assert losses[-1] < losses[0] / 2, losses

report = torch_manualbp.verify(nn.Tanh(), torch.randn(3, 2, dtype=torch.float64, requires_grad=True))
assert report.ok, report

explanation = torch_manualbp.explain(model, F.cross_entropy, x, y, "0.weight", (1, 1))
assert str(explanation).startswith("∂C/∂w_22")
assert abs(explanation.difference) < 1e-6, explanation

insight.report(model, F.cross_entropy, x, y, "page.html")  # whose templates are data of the package
assert Path("page.html").stat().st_size > 10_000

module = ManualBackpropModule(MLP([4, 3, 2]), nn.CrossEntropyLoss(), engine="derived")
trainer = pl.Trainer(
    accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
)
trainer.fit(module, DataLoader(TensorDataset(x, y), 4))
assert trainer.global_step == 2
print(f"torch_manualbp {torch_manualbp.__version__} works with torch {torch.__version__} in {where}")
