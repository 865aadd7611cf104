"""A derived step of networks of images equals autograd's in float64, of torch's layers and functions as of ours."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn as torch_nn

import torch_manualbp
from torch_manualbp import explain, functional, nn


class Classifier(torch_nn.Module):
    """Convolutions with strides, groups and borders, poolings, a mean over places."""

    def __init__(self, nn: Any, F: Any) -> None:
        super().__init__()
        self.F = F
        self.first = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.grouped = nn.Conv2d(8, 8, (3, 2), stride=(2, 1), dilation=(1, 2), groups=4, bias=False)
        self.pool, self.mean = nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1)
        self.border, self.same = nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(8, 8, 3, padding="same")
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.pool(torch.relu(self.first(x)))
        x = torch.tanh(self.grouped(self.border(x)))
        x = x + self.same(x)
        x = self.F.avg_pool2d(self.F.pad(x, (1, 1, 0, 0), "replicate"), 2, 1, 1, count_include_pad=False)
        return self.head(self.mean(x).flatten(1))


class UNet(torch_nn.Module):
    """Down by strides and maxima, up by transposed convolutions, interpolation and shuffled pixels, with skips."""

    def __init__(self, nn: Any, F: Any) -> None:
        super().__init__()
        self.F = F
        self.down1, self.down2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.up2 = nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1)
        self.up1 = nn.Sequential(nn.Conv2d(8, 8, 1), nn.PixelShuffle(2), nn.Upsample(scale_factor=0.5, mode="bilinear"))
        self.out = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Any:
        a = self.F.silu(self.down1(x))
        b = self.F.silu(self.down2(self.F.max_pool2d(a, 2)))
        c = torch.cat((a, self.up2(b)), 1)
        d = torch.cat((self.up1(c), a), 1)
        wide = self.F.interpolate(self.F.interpolate(d, scale_factor=2), size=x.shape[2:], mode="bicubic")
        return self.out(wide)


class Signals(torch_nn.Module):
    """In one dimension and in three."""

    def __init__(self, nn: Any, F: Any) -> None:
        super().__init__()
        self.F = F
        self.line, self.back = nn.Conv1d(2, 4, 3, padding=1), nn.ConvTranspose1d(4, 2, 2, stride=2)
        self.volume, self.pool = nn.Conv3d(1, 2, 2), nn.MaxPool3d(2)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Any:
        h = torch.relu(self.back(self.F.max_pool1d(self.line(x), 2)))
        h = self.volume(h.reshape(h.shape[0], 1, 4, 2, 4))
        return self.head(self.F.adaptive_avg_pool3d(self.F.leaky_relu(h), (1, 1, 1)).flatten(1))


Build = Callable[[Any, Any], torch_nn.Module]
NETWORKS: dict[str, tuple[Build, tuple[int, ...], tuple[int, ...]]] = {
    "classifier": (Classifier, (4, 3, 9, 8), (4,)),
    "U-Net": (UNet, (2, 2, 8, 8), (2, 8, 8)),
    "signals": (Signals, (3, 2, 16), (3,)),
}


@pytest.mark.parametrize("whose", ["torch", "ours"])
@pytest.mark.parametrize("network", NETWORKS)
def test_equals_stock(network: str, whose: str) -> None:
    build, shape, targets = NETWORKS[network]
    model = build(*((torch_nn, torch_nn.functional) if whose == "torch" else (nn, functional))).double()
    stock = build(torch_nn, torch_nn.functional).double()
    stock.load_state_dict(copy.deepcopy(model.state_dict()))
    loss = torch_nn.CrossEntropyLoss()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, stock)]
    step = torch_manualbp.TrainStep(model, loss, optimizers[0])
    for _ in range(4):
        x, y = torch.randn(shape, dtype=torch.float64), torch.randint(3, targets)
        value = step(x, y)
        optimizers[1].zero_grad()
        expected = loss(stock(x), y)
        expected.backward()
        optimizers[1].step()
        torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=1e-12)
        for p, q in zip(model.parameters(), stock.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_a_weight_of_a_kernel_is_explained() -> None:
    model = torch_nn.Sequential(
        torch_nn.Conv2d(2, 3, 2), torch_nn.ReLU(), torch_nn.MaxPool2d(2), torch_nn.Flatten(), torch_nn.Linear(3, 2)
    ).double()
    x, y = torch.randn(2, 2, 3, 3, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    e = explain(model, torch_nn.MSELoss(), x, y, "0.weight", (1, 0, 1, 1))
    assert abs(e.difference) <= 1e-12 * max(1.0, abs(e.value))
    assert e.value == pytest.approx(float(e.autograd), rel=1e-12)
