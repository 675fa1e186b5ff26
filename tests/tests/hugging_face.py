#!/usr/bin/env python3
"""Models of transformers for `hugging_face.rs`, and what transformers makes of ours.

    hugging_face.py make DIR     tiny random models in DIR/NAME, each with its inputs and outputs
    hugging_face.py check DIR    loads every DIR/NAME and compares its outputs with those beside it

Inputs and outputs are in `expected.safetensors`: `input.*`, `hidden.I` (block I's output), `logits`.
"""

import pathlib
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-5
SIZES = dict(
    hidden_size=48,
    num_hidden_layers=2,
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


def audio(cls, **more):
    config = transformers.Data2VecAudioConfig(
        conv_dim=(32, 32, 32),
        conv_kernel=(10, 3, 2),
        conv_stride=(5, 4, 2),
        num_conv_pos_embeddings=3,
        conv_pos_kernel_size=5,
        num_conv_pos_embedding_groups=4,
        **SIZES,
        **more,
    )
    lengths = torch.tensor([1600, 1000, 700])
    mask = (torch.arange(1600) < lengths[:, None]).long()
    return cls(config), dict(input_values=torch.randn(3, 1600) * mask, attention_mask=mask)


def vision(cls, **more):
    config = transformers.Data2VecVisionConfig(
        image_size=32, patch_size=8, layer_norm_eps=1e-6, **SIZES, **more
    )
    return cls(config), dict(pixel_values=torch.randn(2, 3, 32, 32))


def text(cls, **more):
    config = transformers.Data2VecTextConfig(
        vocab_size=64,
        max_position_embeddings=34,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        **SIZES,
        **more,
    )
    mask = (torch.arange(20) < torch.tensor([20, 13, 5])[:, None]).long()
    ids = torch.where(mask == 1, torch.randint(4, 64, (3, 20)), 1)
    return cls(config), dict(input_ids=ids, attention_mask=mask)


T = transformers
MODELS = dict(
    audio=lambda: audio(T.Data2VecAudioModel),
    audio_ctc=lambda: audio(T.Data2VecAudioForCTC, vocab_size=32),
    audio_classifier=lambda: audio(
        T.Data2VecAudioForSequenceClassification, classifier_proj_size=24, num_labels=3
    ),
    vision=lambda: vision(
        T.Data2VecVisionModel,
        use_shared_relative_position_bias=True,
        use_mean_pooling=False,
        use_mask_token=True,
    ),
    vision_classifier=lambda: vision(
        T.Data2VecVisionForImageClassification, use_relative_position_bias=True, num_labels=5
    ),
    vision_cls_classifier=lambda: vision(
        T.Data2VecVisionForImageClassification,
        use_shared_relative_position_bias=True,
        use_mean_pooling=False,
        num_labels=5,
    ),
    text=lambda: text(T.Data2VecTextModel),
    text_classifier=lambda: text(T.Data2VecTextForSequenceClassification, num_labels=3),
    text_regression=lambda: text(
        T.Data2VecTextForSequenceClassification, num_labels=1, problem_type="regression"
    ),
)


def outputs(model, inputs):
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    result = {f"hidden.{i}": h for i, h in enumerate(output.hidden_states) if i > 0}
    if "logits" in output:
        result["logits"] = output.logits
    return result


def make(folder):
    for name, build in MODELS.items():
        torch.manual_seed(1)
        model, inputs = build()
        randomize(model)
        tensors = {f"input.{key}": value for key, value in inputs.items()} | outputs(model, inputs)
        model.save_pretrained(folder / name)
        save_file({k: t.contiguous().clone() for k, t in tensors.items()}, folder / name / "expected.safetensors")


def check(folder):
    for path in sorted(folder.iterdir()):
        expected = load_file(path / "expected.safetensors")
        config = transformers.AutoConfig.from_pretrained(path)
        cls = getattr(transformers, config.architectures[0])
        model, info = cls.from_pretrained(path, output_loading_info=True, attn_implementation="eager")
        wrong = {key: list(value) for key, value in info.items() if value}
        if wrong:
            sys.exit(f"{path.name}: {wrong}")
        model.eval()
        inputs = {k.removeprefix("input."): t for k, t in expected.items() if k.startswith("input.")}
        mask = inputs.get("attention_mask")
        for name, ours in outputs(model, inputs).items():
            if name not in expected:
                sys.exit(f"{path.name}: nothing to compare {name} with")
            off = (ours - expected[name]).abs()
            if name.startswith("hidden.") and "pixel_values" in inputs:
                off = off[:, 1:]  # CLS shows in logits
            if name.startswith("hidden.") and mask is not None:
                frames = mask.sum(1)
                if "input_values" in inputs:
                    frames = model._get_feat_extract_output_lengths(frames)
                off = off * (torch.arange(off.shape[1]) < frames[:, None])[:, :, None]
            if not off.max().item() <= TOLERANCE:
                sys.exit(f"{path.name}: {name} is off by {off.max().item()}")
        if (path / "tokenizer.json").exists():
            tokens = transformers.AutoTokenizer.from_pretrained(path)
            ids = tokens((path / "text.txt").read_text()).input_ids
            ours = [int(i) for i in (path / "ids.txt").read_text().split()]
            if ids != ours:
                sys.exit(f"{path.name}: the tokenizer says {ids}, not {ours}")
        if (path / "vocab.json").exists():
            tokens = transformers.AutoTokenizer.from_pretrained(path)
            said = tokens.decode([5, 5, 0, 5, 4, 6])
            if said != "EE T":
                sys.exit(f"{path.name}: the tokenizer says {said!r}")
        print(f"{path.name}: loaded, same outputs")


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]](pathlib.Path(sys.argv[2]))
