"""Training under PyTorch Lightning: the one part of the package that imports it.

- :class:`ManualBackpropModule` trains a model of our layers under ``pytorch_lightning.Trainer``
- :class:`DerivedTraining` gives a LightningModule of one's own derived training steps
- :class:`MLP` is a network that a configuration can describe
- :class:`GradientFlow` records the gradient norm of every layer over training
- :class:`GradientVerification` verifies the gradient of every layer during training
- :class:`NonFiniteLossError` stops a training whose loss is NaN or infinite, and names the layer that it comes from
- :class:`DigitsDataModule` serves the handwritten digits that scikit-learn ships

All are classes of ``pytorch_lightning``, or of ``lightning.pytorch`` in a script that imports that one first.

::

    module = ManualBackpropModule(model, torch_manualbp.nn.CrossEntropyLoss(), lambda p: torch.optim.SGD(p, lr=0.1))
    pytorch_lightning.Trainer(max_epochs=20, callbacks=[GradientFlow("flow.png")]).fit(module, DigitsDataModule())
"""

from torch_manualbp.lightning.custom import DerivedTraining
from torch_manualbp.lightning.digits import DigitsDataModule
from torch_manualbp.lightning.gradient_flow import GradientFlow
from torch_manualbp.lightning.mlp import MLP
from torch_manualbp.lightning.module import ManualBackpropModule
from torch_manualbp.lightning.nonfinite import NonFiniteLossError
from torch_manualbp.lightning.verification import GradientVerification

__all__ = [
    "MLP",
    "DerivedTraining",
    "DigitsDataModule",
    "GradientFlow",
    "GradientVerification",
    "ManualBackpropModule",
    "NonFiniteLossError",
]
