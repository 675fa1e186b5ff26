"""data2vec 1.0 on the encoders of transformers: hidden tokens are replaced by a learned one."""

import copy

import torch
from torch import nn
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    Data2VecTextConfig,
    Data2VecTextModel,
    Data2VecVisionConfig,
    Data2VecVisionModel,
)

from peer_parts import bert_init


class Model(nn.Module):
    """Student with its head, and the teacher beside it (not among the parameters)."""

    def __init__(self, recipe):
        super().__init__()
        self.recipe = recipe
        self.encoder = self.new_encoder(recipe["features"], recipe["transformer"])
        self.head = head(recipe["transformer"]["dim"], recipe["decoder"]["layers"])
        if recipe["modality"] != "speech":
            bert_init(self.head)
        self.layers = []  # what the teacher's hooks saw
        teacher = copy.deepcopy(self.averaged()).eval().requires_grad_(False)
        for block in self.blocks(teacher)[-recipe["target"]["top_k"] :]:
            self.source(block).register_forward_hook(self.keep)
        self.teacher = (teacher,)  # a tuple hides it from nn.Module

    def keep(self, _module, _inputs, output):
        self.layers.append(output[0] if isinstance(output, tuple) else output)

    def compile_blocks(self):
        for block in [*self.blocks(self.averaged()), *self.blocks(self.teacher[0])]:
            block.compile()

    def tokens(self, inputs):
        """What student and teacher share."""
        return inputs

    def teach(self, inputs, tokens):
        """The last K blocks' results, (B, T, D) each."""
        self.layers.clear()
        self.run_teacher(self.teacher[0], inputs, tokens)
        return self.layers

    def predict(self, tokens, hidden):
        """(N, D): predictions at hidden tokens; there is no prefix loss."""
        return self.head(self.student(tokens, hidden)[hidden]), None

    def encode(self, inputs):
        return self.encoder(inputs).last_hidden_state


def head(dim, layers):
    """Linear maps of each token by itself."""
    if layers == 1:
        return nn.Linear(dim, dim)
    maps = [nn.Linear(dim, 2 * dim), nn.GELU()]
    for _ in range(layers - 2):
        maps += [nn.Linear(2 * dim, 2 * dim), nn.GELU()]
    return nn.Sequential(*maps, nn.Linear(2 * dim, dim))


def sizes(transformer):
    """What all three configurations call alike."""
    return {
        "hidden_size": transformer["dim"],
        "num_hidden_layers": transformer["depth"],
        "num_attention_heads": transformer["heads"],
        "intermediate_size": int(transformer["dim"] * transformer["mlp_ratio"]),
        "layer_norm_eps": transformer["norm_eps"],
    }


class Speech(Model):
    """The teacher hears what the student's convolutions made of the waveform."""

    def new_encoder(self, features, transformer):
        channels, kernels, strides = zip(*features["conv_layers"])
        config = Data2VecAudioConfig(
            **sizes(transformer),
            conv_dim=channels,
            conv_kernel=kernels,
            conv_stride=strides,
            num_conv_pos_embeddings=features["pos_layers"],
            conv_pos_kernel_size=features["pos_kernel"],
            num_conv_pos_embedding_groups=features["pos_groups"],
            hidden_dropout=transformer["dropout"],
            attention_dropout=transformer["attention_dropout"],
            activation_dropout=transformer["activation_dropout"],
            layerdrop=0.0,
        )
        return Data2VecAudioModel(config)

    def averaged(self):
        return self.encoder.encoder

    def blocks(self, part):
        return part.layers

    def source(self, block):
        return block.feed_forward.output_dense

    def num_tokens(self, inputs):
        return int(self.encoder._get_feat_extract_output_lengths(inputs.shape[1]))

    def tokens(self, inputs):
        features = self.encoder.feature_extractor(inputs).transpose(1, 2)
        return self.encoder.feature_projection(features)[0]

    def run_teacher(self, teacher, _inputs, tokens):
        teacher(tokens)

    def student(self, tokens, hidden):
        token = self.encoder.masked_spec_embed.to(tokens.dtype)
        return self.encoder.encoder(torch.where(hidden.unsqueeze(-1), token, tokens)).last_hidden_state


class Vision(Model):
    """The teacher is a copy of the whole encoder."""

    def new_encoder(self, features, transformer):
        config = Data2VecVisionConfig(
            **sizes(transformer),
            image_size=tuple(features["image_size"]),
            patch_size=features["patch_size"],
            num_channels=features["channels"],
            use_mask_token=True,
            use_shared_relative_position_bias=True,
            use_mean_pooling=False,
            layer_scale_init_value=transformer["layer_scale"],
            hidden_dropout_prob=transformer["dropout"],
            attention_probs_dropout_prob=transformer["attention_dropout"],
            drop_path_rate=transformer["drop_path"],
        )
        return Data2VecVisionModel(config)

    def averaged(self):
        return self.encoder

    def blocks(self, part):
        return part.encoder.layer

    def source(self, block):
        return block

    def num_tokens(self, _inputs):
        return self.encoder.embeddings.patch_embeddings.num_patches

    def run_teacher(self, teacher, inputs, _tokens):
        teacher(inputs)
        self.layers[:] = [layer[:, 1:] for layer in self.layers]  # without CLS

    def student(self, tokens, hidden):
        return self.encoder(tokens, bool_masked_pos=hidden).last_hidden_state[:, 1:]


class Text(Model):
    """The teacher reads the student's embeddings, without dropout."""

    def new_encoder(self, features, transformer):
        config = Data2VecTextConfig(
            **sizes(transformer),
            vocab_size=features["vocabulary"],
            max_position_embeddings=features["max_tokens"] + 2,
            type_vocab_size=1,
            pad_token_id=features["pad"],
            hidden_dropout_prob=transformer["dropout"],
            attention_probs_dropout_prob=transformer["attention_dropout"],
        )
        return Data2VecTextModel(config, add_pooling_layer=False)

    def averaged(self):
        return self.encoder.encoder

    def blocks(self, part):
        return part.layer

    def source(self, block):
        return block.output.dense

    def num_tokens(self, inputs):
        return inputs.shape[1]

    def run_teacher(self, teacher, inputs, _tokens):
        self.encoder.embeddings.eval()
        embedded = self.encoder.embeddings(inputs)
        self.encoder.embeddings.train(self.training)
        teacher(embedded)

    def student(self, tokens, hidden):
        tokens = tokens.masked_fill(hidden, self.recipe["features"]["mask"])
        return self.encoder(tokens).last_hidden_state


MODELS = {"speech": Speech, "vision": Vision, "nlp": Text}
