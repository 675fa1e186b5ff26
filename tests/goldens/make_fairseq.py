#!/usr/bin/env python3
"""Checkpoints in the layouts of fairseq and of BEiT's fork, of the goldens' weights.

    .venv/bin/python tests/goldens/make_fairseq.py    writes fairseq_*.pt and beit_*.pth beside this script

Only PyTorch and safetensors are needed: what OmegaConf and argparse would put into such a file is made of
classes of the same names.
"""

import argparse
import pathlib
import sys
import types

import torch
from safetensors.torch import load_file

HERE = pathlib.Path(__file__).parent


def foreign(module, name):
    """A class that a pickle will call `module.name`."""
    cls = type(name, (), {"__module__": module})
    for part in (module.rsplit(".", 1)[0], module):
        sys.modules.setdefault(part, types.ModuleType(part))
    setattr(sys.modules[module], name, cls)
    return cls


DictConfig = foreign("omegaconf.dictconfig", "DictConfig")
AnyNode = foreign("omegaconf.nodes", "AnyNode")


def omegaconf(value, parent=None):
    """As OmegaConf pickles its containers: each value knows what it is in."""
    if not isinstance(value, dict):
        node = AnyNode()
        node.__dict__.update(_parent=parent, _val=value)
        return node
    node = DictConfig()
    content = {key: omegaconf(inner, node) for key, inner in value.items()}
    node.__dict__.update(_parent=parent, _content=content)
    return node


def weights(file, prefix, skip=()):
    tensors = load_file(HERE / f"{file}.safetensors")
    named = ((name.removeprefix(prefix), t) for name, t in tensors.items() if name.startswith(prefix))
    return {name: t for name, t in named if not any(part in name for part in skip)}


def save(value, name):
    path = HERE / name
    torch.save(value, path)
    print(f"{path.name}: {path.stat().st_size} bytes")


def speech():
    student, teacher = (weights("v1_audio.weights", f"{who}.") for who in ("student", "teacher"))
    cfg = {
        "_name": None,
        "common": {"fp16": False, "seed": 1},
        "task": {"_name": "audio_pretraining", "normalize": False},
        "model": {
            "_name": "data2vec_audio",
            "extractor_mode": "layer_norm",
            "encoder_layers": 4,
            "encoder_embed_dim": 48,
            "encoder_attention_heads": 4,
            "dropout": 0.1,
            "encoder_layerdrop": 0.05,
            "conv_feature_layers": "[(32, 10, 5)] + [(32, 3, 2)] * 2 + [(32,2,2)]",
            "conv_pos_groups": 4,
        },
    }
    # The teacher is a dict within the state dict.
    save({"args": None, "cfg": omegaconf(cfg), "model": student | {"_ema": teacher}}, "fairseq_v1_audio.pt")


def image():
    skip = ("decoder",)
    student = weights("v2_image.student", "student.", skip)
    teacher = weights("v2_image.teacher", "teacher.", skip)
    cfg = {
        "model": {
            "_name": "data2vec_multi",
            "depth": 3,
            "num_heads": 4,
            "norm_eps": 1e-6,
            "embed_dim": 48,
            "modalities": {"image": {"type": "IMAGE", "prenet_depth": 1, "input_size": 32, "patch_size": 8}},
        }
    }
    save({"args": None, "cfg": cfg, "model": student | {"_ema": teacher}}, "fairseq_v2_image.pt")


def text():
    student, teacher = (weights("v2_text.weights", f"{who}.", ("decoder",)) for who in ("student", "teacher"))
    cfg = {
        "model": {
            "_name": "data2vec_multi",
            "depth": 3,
            "num_heads": 4,
            "norm_eps": 1e-5,
            "modalities": {"text": {"type": "TEXT", "prenet_depth": 0, "dropout": 0.1}},
        }
    }
    # Of the blocks alone: 0.norm1.weight, …
    save({"args": None, "cfg": cfg, "model": student | {"_ema": teacher}}, "fairseq_v2_text.pt")


def beit():
    student, teacher = (weights(f"v1_image.{who}", f"{who}.") for who in ("student", "teacher"))
    args = argparse.Namespace(model="beit_tiny", input_size=32, drop_path=0.0, layer_scale_init_value=0.1)
    save({"model": student, "model_ema": teacher, "epoch": 3, "args": args}, "beit_v1_image.pth")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for make in (speech, image, text, beit):
        make()
