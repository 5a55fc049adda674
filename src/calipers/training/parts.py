"""Training of any module by any loss: seeded batches, a falling rate, a state after each epoch to go on from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from calipers.errors import UsageError
from calipers.target.allocator import keep_freed_memory
from calipers.training.batches import Augment, TrainingData
from calipers.training.checkpoints import data_digest, read_checkpoint, write_checkpoint
from calipers.training.loop import cosine_rate

__all__ = ["BatchLoss", "train_part"]

BatchLoss = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]
"""From the network, images (batch, channels, height, width) in [0, 1], labels and a seeded generator to a mean loss."""


def train_part(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: BatchLoss,
    *,
    recipe: str,
    epochs: int,
    batch_size: int = 128,
    augment: Augment = "none",
    learning_rate: float = 2e-3,
    weight_decay: float = 1e-2,
    warmup_epochs: float = 0.5,
    seed: int = 0,
    checkpoint: Path | None = None,
    tell: Callable[[str], None] | None = None,
) -> nn.Module:
    """Train a module in place with Adam (decoupled weight decay), or go on where its checkpoint stands.

    Args:
        net: the module, on the CPU or another device, with its initial weights.
        images: (n, channels, height, width), uint8 in 0 to 255 or float32 in [0, 1].
        labels: (n,), int64.
        loss: what is descended.
        recipe: all that decides the weights beside the arguments here; a checkpoint of another recipe is refused.
        epochs: passes over the images.
        batch_size: images a step.
        augment: what is done to each image.
        learning_rate: its largest value; it falls to zero by half a cosine.
        weight_decay: of every parameter.
        warmup_epochs: epochs of a linear rise before that.
        seed: of the order of the images and of the generator that the loss is given.
        checkpoint: where the state is written after each epoch and read from; removed at the end.
        tell: told after each epoch.

    Returns:
        The module in evaluation mode.

    Raises:
        UsageError: if the loss is no finite number.
    """
    keep_freed_memory()
    device = next(net.parameters()).device
    data = TrainingData(images, labels, batch_size=batch_size, augment=augment, device=device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=weight_decay)
    key = {
        "recipe": f"{recipe} {augment} {epochs} {batch_size} {learning_rate} {weight_decay} {warmup_epochs} {seed}",
        "data": data_digest(images, labels) if checkpoint is not None else "",
    }
    done = 0
    state = read_checkpoint(checkpoint, key=key) if checkpoint is not None else None
    if state is not None:
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        done = int(state["epochs"])
    steps = epochs * data.batches
    warmup = min(round(warmup_epochs * data.batches), max(steps - 1, 0))
    for epoch in range(done, epochs):
        began, total = time.perf_counter(), 0.0
        net.train()
        for number, batch in enumerate(data.epoch(seed, epoch)):
            step = epoch * data.batches + number
            rate = cosine_rate(step, peak=learning_rate, warmup=warmup, steps=steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            value = loss(net, batch.images.permute(0, 3, 1, 2), batch.labels, batch.noise)
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(value.detach())
        mean = total / data.batches
        if not math.isfinite(mean):
            raise UsageError(
                f"the loss became {mean} in epoch {epoch + 1} with learning_rate {learning_rate}: give a smaller one"
            )
        if tell is not None:
            tell(f"epoch {epoch + 1} of {epochs}: loss {mean:.4f}, {time.perf_counter() - began:.0f} s")
        if checkpoint is not None:
            held = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epoch + 1}
            write_checkpoint(checkpoint, key=key, state=held)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return net.eval()
