"""What both versions of data2vec share: masks, targets and the loss, as the recipe says."""

import random

import torch
import torch.nn.functional as F
from torch import nn


def bert_init(part):
    """Linear maps start as BERT's, so that losses are ours from the first step on."""
    for module in part.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)


def hidden_tokens(recipe, rows, tokens, device):
    """(rows, tokens) bool: which tokens the student does not see.

    As many as the recipe hides, in spans where a row's count depends on their overlap. Where only the
    count matters for the time a step takes, single tokens stand for blocks.
    """
    mask = recipe["mask"]
    if mask["kind"] == "spans":
        hidden = torch.stack([spans(tokens, mask["probability"], mask["length"]) for _ in range(rows)])
        if mask.get("same_count"):
            fewest = int(hidden.sum(1).min())
            for row in hidden:
                places = row.nonzero().squeeze(1)
                row[places[torch.randperm(len(places))[fewest:]]] = False
        return hidden.to(device)
    if "patches" in mask:
        count = mask["patches"]
    elif mask["kind"] == "blocks":
        count = int(tokens * mask["probability"])
    else:  # the visible ones are counted
        count = tokens - int(tokens * (1 - mask["probability"]))
    order = torch.rand(rows, tokens, device=device).argsort(1)
    return order < count


def spans(tokens, probability, length):
    """(tokens) bool: spans with distinct starts, as many as would hide `probability` without overlap."""
    count = int(probability * tokens / length + random.random())
    hidden = torch.zeros(tokens, dtype=torch.bool)
    for start in torch.randperm(tokens - length)[:count].tolist():
        hidden[start : start + length] = True
    return hidden


def normalized(x, norm):
    """(B, T, D): `instance`: each channel over time; `layer`: each token over channels; or as it is."""
    if norm == "instance":
        return F.instance_norm(x.transpose(1, 2)).transpose(1, 2)
    return F.layer_norm(x, x.shape[-1:]) if norm == "layer" else x


def target(layers, config):
    """(B, T, D) f32: the mean of normalised layers."""
    layers = [normalized(layer.float(), config["layer_norm"]) for layer in layers]
    return normalized(torch.stack(layers).mean(0), config["target_norm"])


def regression(prediction, target, config):
    """Scalar f32, summed over all tokens and channels."""
    prediction, beta = prediction.float(), config["beta"]
    if beta == 0:
        loss = F.mse_loss(prediction, target, reduction="sum")
    else:
        loss = F.smooth_l1_loss(prediction, target, reduction="sum", beta=beta)
    return loss * config.get("scale", target.shape[-1] ** -0.5)
