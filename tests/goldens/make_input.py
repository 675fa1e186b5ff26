#!/usr/bin/env python3
"""Losses of methods that predict their input, by Hugging Face's code: ViTMAE and RobertaForMaskedLM.

    python -m venv .venv && .venv/bin/pip install torch==2.11.0 transformers==5.23.0
    .venv/bin/python tests/goldens/make_input.py      writes input_losses.safetensors
"""

import pathlib

import torch
import transformers
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent


def mae():
    """Pixels, patches as targets, a mask, predictions at all patches, and the loss."""
    config = transformers.ViTMAEConfig(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=96,
        decoder_hidden_size=48, decoder_num_hidden_layers=1, decoder_num_attention_heads=4,
        decoder_intermediate_size=96, image_size=32, patch_size=8, num_channels=3, norm_pix_loss=True,
    )
    model = transformers.ViTMAEForPreTraining(config).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        output = model(pixel_values=pixels)
    # ViTMAE orders the numbers of a patch by row, column, channel; this project by channel, row, column.
    by_channel = output.logits.reshape(2, 16, 8, 8, 3).permute(0, 1, 4, 2, 3).reshape(2, 16, -1)
    return {
        "mae.pixels": pixels,
        "mae.mask": output.mask.bool(),
        "mae.prediction": by_channel,
        "mae.loss": output.loss.double(),
    }


def mlm():
    """Logits of a masked language model, labels (-100 where nothing is predicted), and the loss."""
    config = transformers.RobertaConfig(
        vocab_size=64, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        max_position_embeddings=34, attn_implementation="eager",
    )
    model = transformers.RobertaForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    ids = torch.randint(4, 63, (3, 20))
    masked = torch.rand(ids.shape) < 0.4
    labels = ids.masked_fill(~masked, -100)
    with torch.no_grad():
        output = model(input_ids=ids.masked_fill(masked, 63), labels=labels)
    return {"mlm.ids": ids, "mlm.mask": masked, "mlm.logits": output.logits, "mlm.loss": output.loss.double()}


torch.manual_seed(1)
tensors = {name: x.detach().clone().contiguous() for name, x in (mae() | mlm()).items()}
save_file(tensors, HERE / "input_losses.safetensors")
