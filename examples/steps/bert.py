"""BERT as transformers has it, of a configuration, trained by its derived step on sentences of two kinds.

pip install transformers
python examples/steps/bert.py
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp import TrainStep


def bert(width: int, layers: int) -> Any:
    """A classifier of two classes, with weights that nothing was learnt from yet."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=64,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * width,
        max_position_embeddings=32,
    )
    return BertForSequenceClassification(config)


def batch(size: int, length: int = 12) -> tuple[dict[str, Tensor], Tensor]:
    """Sentences of one class have a certain word in them. The last places are padding."""
    y = torch.randint(0, 2, (size,))
    words = torch.randint(10, 64, (size, length))
    words[:, 3] = torch.where(y == 1, 5, words[:, 3])
    mask = torch.ones_like(words)
    mask[: size // 2, -2:] = 0
    return {"input_ids": words, "attention_mask": mask}, y


def main(steps: int = 60, width: int = 32, layers: int = 2) -> list[float]:
    torch.manual_seed(0)
    model = bert(width, layers).train()
    step = TrainStep(
        model,
        lambda output, target: F.cross_entropy(output.logits, target),
        torch.optim.AdamW(model.parameters(), lr=2e-3),
    )
    losses = [step(*batch(16)).item() for _ in range(steps)]
    print(f"BERT: loss {losses[0]:.3f} → {losses[-1]:.3f}; a step of {len(step.source.splitlines())} lines")
    return losses


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
