"""ResNet-18 for small pictures, trained by its derived step, running statistics included.

python examples/steps/resnet18.py
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_manualbp import TrainStep


class BasicBlock(nn.Module):
    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != channels:
            conv = nn.Conv2d(before, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return F.relu(out)


def resnet18(width: int = 64, classes: int = 10) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    before = width
    for i in range(4):
        for stride in (1, 1) if i == 0 else (2, 1):
            layers.append(BasicBlock(before, width << i, stride))
            before = width << i
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def main(steps: int = 15, width: int = 16, batch: int = 16, pixels: int = 32) -> list[float]:
    torch.manual_seed(0)
    model = resnet18(width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer)
    y = torch.arange(batch) % 10
    x = torch.randn(batch, 3, pixels, pixels) + 0.3 * y.reshape(-1, 1, 1, 1)
    losses = [step(x, y).item() for _ in range(steps)]
    print(f"ResNet-18: loss {losses[0]:.3f} → {losses[-1]:.3f}; a step of {len(step.source.splitlines())} lines")
    return losses


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
