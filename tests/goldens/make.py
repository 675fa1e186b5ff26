#!/usr/bin/env python3
"""Hugging Face's three data2vec encoders, tiny and random: their weights, inputs and all layers' outputs.

    python -m venv .venv && .venv/bin/pip install torch==2.11.0 transformers==5.23.0
    .venv/bin/python tests/goldens/make.py            compares with the files beside this script
    .venv/bin/python tests/goldens/make.py --write    writes them

Rows of audio and text are padded, and the images are larger than those that the positions were made for.
"""

import argparse
import pathlib
import sys
from math import isnan

import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent
TOLERANCE = 1e-5
TRANSFORMER = dict(
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=96,
    attn_implementation="eager",
)


def randomize(model):
    """Weights of which none is 0 or 1, so that each has its say."""
    for name, weight in sorted(model.named_parameters()):
        offset = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        spread = weight.shape[-1] ** -0.5 if weight.dim() > 1 else 0.1
        with torch.no_grad():
            weight.copy_(offset + spread * torch.randn(weight.shape))
    return model.eval()


def results(model, inputs, **more):
    with torch.no_grad():
        output = model(**inputs, **more, output_hidden_states=True)
    tensors = {f"weights.{name}": weight for name, weight in model.state_dict().items()}
    tensors |= {f"input.{name}": value for name, value in inputs.items()}
    tensors |= {f"hidden.{i}": hidden for i, hidden in enumerate(output.hidden_states)}
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def audio():
    config = transformers.Data2VecAudioConfig(
        conv_dim=(32, 32, 32, 32),
        conv_kernel=(10, 3, 3, 2),
        conv_stride=(5, 2, 2, 2),
        num_feat_extract_layers=4,
        num_conv_pos_embeddings=3,
        conv_pos_kernel_size=5,
        num_conv_pos_embedding_groups=4,
        mask_time_prob=0.0,
        **TRANSFORMER,
    )
    lengths = torch.tensor([1600, 1000, 700])
    mask = (torch.arange(1600) < lengths[:, None]).long()
    inputs = dict(input_values=torch.randn(3, 1600) * mask, attention_mask=mask)
    return results(randomize(transformers.Data2VecAudioModel(config)), inputs)


def vision():
    config = transformers.Data2VecVisionConfig(
        image_size=32,
        patch_size=8,
        use_shared_relative_position_bias=True,
        use_mean_pooling=False,
        layer_norm_eps=1e-6,
        drop_path_rate=0.0,
        **TRANSFORMER,
    )
    model = randomize(transformers.Data2VecVisionModel(config, add_pooling_layer=False))
    small = results(model, dict(pixel_values=torch.randn(2, 3, 32, 32)))
    large = results(model, dict(pixel_values=torch.randn(1, 3, 48, 40)))
    outputs = ("input.", "hidden.")
    return small | {f"large.{name}": t for name, t in large.items() if name.startswith(outputs)}


def text():
    config = transformers.Data2VecTextConfig(
        vocab_size=64,
        max_position_embeddings=34,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        **TRANSFORMER,
    )
    lengths = torch.tensor([20, 13, 5])
    mask = (torch.arange(20) < lengths[:, None]).long()
    ids = torch.randint(4, 64, (3, 20))
    inputs = dict(input_ids=torch.where(mask == 1, ids, 1), attention_mask=mask)
    model = transformers.Data2VecTextModel(config, add_pooling_layer=False)
    return results(randomize(model), inputs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the files instead of comparing")
    write = parser.parse_args().write
    made_by = f"transformers {transformers.__version__}, torch {torch.__version__}"
    for make in (audio, vision, text):
        torch.manual_seed(1)
        tensors, path = make(), HERE / f"hf_{make.__name__}.safetensors"
        if write:
            save_file(tensors, path, metadata={"made_by": made_by})
            print(f"{path.name}: {path.stat().st_size} bytes")
            continue
        kept = load_file(path)
        if kept.keys() != tensors.keys():
            sys.exit(f"{path.name}: other tensors: {sorted(kept.keys() ^ tensors.keys())}")
        differences = {name: (kept[name] - t).abs().max().item() for name, t in tensors.items()}
        worst = max(differences, key=lambda name: (isnan(differences[name]), differences[name]))
        print(f"{path.name}: differs by at most {differences[worst]:.1e} ({worst})")
        if not differences[worst] <= TOLERANCE:
            sys.exit(f"{path.name}: more than {TOLERANCE} (with {made_by}; see the head of this script)")


if __name__ == "__main__":
    main()
