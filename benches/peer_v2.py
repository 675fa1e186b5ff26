"""data2vec 2.0, which transformers does not have: hidden tokens are dropped, several masks are shown
for each input, and a convolutional decoder sees noise where tokens are hidden."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from peer_parts import bert_init


class Block(nn.Module):
    """Attention and MLP, each followed by a layer norm."""

    def __init__(self, config):
        super().__init__()
        dim, hidden = config["dim"], int(config["dim"] * config["mlp_ratio"])
        self.heads, self.attention_dropout = config["heads"], config["attention_dropout"]
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm1 = nn.LayerNorm(dim, eps=config["norm_eps"])
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Dropout(config["activation_dropout"]),
            nn.Linear(hidden, dim),
        )
        self.norm2 = nn.LayerNorm(dim, eps=config["norm_eps"])
        self.dropout = nn.Dropout(config["dropout"])

    def attention(self, x, bias):
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (N, H, T, d)
        dropout = self.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        return self.proj(y.transpose(1, 2).flatten(2))

    def forward(self, x, bias):
        """(N, T, D): the block's output, and the MLP's."""
        x = self.norm1(x + self.dropout(self.attention(x, bias)))
        ffn = self.mlp(x)
        return self.norm2(x + self.dropout(ffn)), ffn


class ChannelNorm(nn.Module):
    """Layer norm over the channels of (N, C, ...), and GELU."""

    def __init__(self, dim, affine):
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=affine)

    def forward(self, x):
        return F.gelu(self.norm(x.movedim(1, -1)).movedim(-1, 1))


class Waves(nn.Module):
    """Convolutions over the waveform and a projection."""

    def __init__(self, features, dim):
        super().__init__()
        layers, channels = [], 1
        for out, kernel, stride in features["conv_layers"]:
            conv = nn.Conv1d(channels, out, kernel, stride, bias=False)
            nn.init.kaiming_normal_(conv.weight)
            layers += [conv, ChannelNorm(out, affine=True)]
            channels = out
        self.convs = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(channels)
        self.proj = nn.Linear(channels, dim)

    def forward(self, waves):
        return self.proj(self.norm(self.convs(waves.unsqueeze(1)).transpose(1, 2)))


class Patches(nn.Module):
    """Patches of an image, with fixed positions added."""

    def __init__(self, features, dim):
        super().__init__()
        patch = features["patch_size"]
        self.proj = nn.Conv2d(features["channels"], dim, patch, patch)
        self.grid = tuple(side // patch for side in features["image_size"])
        self.register_buffer("positions", sin_cos(self.grid, dim))

    def forward(self, images):
        return self.proj(images).flatten(2).transpose(1, 2) + self.positions


def sin_cos(grid, dim):
    """(T, D): the first half of the channels tells the column, the second the row."""
    row, column = torch.meshgrid(*(torch.arange(n).double() for n in grid), indexing="ij")
    frequencies = 10_000 ** -(torch.arange(dim // 4).double() / (dim // 4))
    angles = [place.reshape(-1, 1) * frequencies for place in (column, row)]
    return torch.cat([part for a in angles for part in (a.sin(), a.cos())], 1).float()


class Words(nn.Module):
    """Word embeddings with learned positions."""

    def __init__(self, features, dim):
        super().__init__()
        self.words = nn.Embedding(features["vocabulary"], dim, padding_idx=features["pad"])
        self.positions = nn.Embedding(features["max_tokens"] + 2, dim)  # from 2, as in RoBERTa
        self.norm = nn.LayerNorm(dim, eps=features["norm_eps"])
        self.dropout = nn.Dropout(features["dropout"])

    def forward(self, ids):
        places = torch.arange(2, ids.shape[1] + 2, device=ids.device)
        return self.dropout(self.norm(self.words(ids) + self.positions(places)))


class ConvPositions(nn.Module):
    """Convolutions over time whose result is added."""

    def __init__(self, features, dim):
        super().__init__()
        kernel, groups, layers = features["pos_kernel"], features["pos_groups"], []
        for _ in range(features["pos_layers"]):
            layers += [nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)]
            layers += [ChannelNorm(dim, affine=False)]
        self.convs = nn.Sequential(*layers)

    def forward(self, x):
        return self.convs(x.transpose(1, 2)).transpose(1, 2)


class Alibi(nn.Module):
    """Attention falls with distance, by a learned scale for each head."""

    def __init__(self, heads):
        super().__init__()
        below = 2 ** int(math.log2(heads))
        slopes = [2 ** (-8 * i / below) for i in range(1, below + 1)]
        slopes += [2 ** (-4 * i / below) for i in range(1, 2 * below + 1, 2)]
        self.register_buffer("slopes", torch.tensor(slopes[:heads]).view(-1, 1, 1))
        self.scale = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, places):
        """(N, H, K, K) from the kept tokens' places (N, K)."""
        distance = (places.unsqueeze(2) - places.unsqueeze(1)).abs()
        return -distance.unsqueeze(1) * (self.slopes * self.scale.clamp_min(0))


class Context(nn.Module):
    """Tokens to features: relative positions, then blocks."""

    def __init__(self, recipe):
        super().__init__()
        features, config = recipe["features"], recipe["transformer"]
        dim, speech = config["dim"], recipe["modality"] == "speech"
        self.positions = ConvPositions(features, dim) if speech else None
        self.alibi = Alibi(config["heads"]) if features.get("alibi") else None
        self.cls = nn.Parameter(torch.randn(dim)) if recipe["modality"] == "vision" else None
        self.norm = nn.LayerNorm(dim, eps=config["norm_eps"]) if config["input_norm"] else nn.Identity()
        self.dropout = nn.Dropout(config["input_dropout"])
        self.blocks = nn.ModuleList(Block(config) for _ in range(config["depth"]))
        self.top_k = recipe["target"]["top_k"]

    def forward(self, x, hidden=None, keep=None):
        """Features (N, K, D) of the tokens `keep` (N, K), or of all; CLS's (N, D) or None; without
        training the last blocks' MLP outputs, too."""
        if self.positions is not None:
            seen = x if hidden is None else x.masked_fill(hidden.unsqueeze(-1), 0)
            x = x + self.positions(seen)
        if keep is not None:
            x = x.gather(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        bias = None
        if self.alibi is not None:
            every = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
            bias = self.alibi(every if keep is None else keep)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(x.shape[0], 1, -1), x], 1)
        x = self.dropout(self.norm(x))
        prefix, layers = int(self.cls is not None), []
        for i, block in enumerate(self.blocks):
            x, ffn = block(x, bias)
            if not self.training and i >= len(self.blocks) - self.top_k:
                layers.append(ffn[:, prefix:])
        return x[:, prefix:], x[:, 0] if prefix else None, layers


class Decoder(nn.Module):
    """Convolutions over time or the grid of tokens, then a projection."""

    def __init__(self, config, dim, grid):
        super().__init__()
        self.grid, conv = grid, nn.Conv1d if config["kind"] == "conv1d" else nn.Conv2d
        width, kernel, groups = config["dim"], config["kernel"], config["groups"]
        blocks = []
        for i in range(config["layers"]):
            layer = conv(width if i else dim, width, kernel, padding=kernel // 2, groups=groups)
            blocks.append(nn.Sequential(layer, ChannelNorm(width, affine=False)))
        self.blocks = nn.ModuleList(blocks)
        self.residual = [config["residual"] and (i > 0 or dim == width) for i in range(len(blocks))]
        self.input_dropout = nn.Dropout(config["input_dropout"])
        if config.get("projections", 1) == 1:
            self.proj = nn.Linear(width, dim)
        else:
            self.proj = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, dim))

    def forward(self, x, hidden):
        """(N, D) at hidden tokens, of features (B, T, D) at full length."""
        x = x.transpose(1, 2).unflatten(2, self.grid or (-1,))
        for block, residual in zip(self.blocks, self.residual):
            x = x + block(x) if residual else block(x)
        return self.proj(x.flatten(2).transpose(1, 2)[hidden])


class Model(nn.Module):
    """Student with its decoder, and the teacher beside it (not among the parameters)."""

    def __init__(self, recipe):
        super().__init__()
        if recipe["transformer"]["norm"] != "post":
            raise SystemExit("error: the peer of 2.0 has post-norm blocks alone")
        dim = recipe["transformer"]["dim"]
        embed = {"speech": Waves, "vision": Patches, "nlp": Words}[recipe["modality"]]
        embed = embed(recipe["features"], dim)
        self.encoder = nn.ModuleDict({"embed": embed, "context": Context(recipe)})
        bert_init(self.encoder["context"].blocks)
        self.decoder = Decoder(recipe["decoder"], dim, getattr(embed, "grid", None))
        if recipe["modality"] == "nlp":
            bert_init(self.decoder.proj)
        self.copies, self.noise_std = recipe["model"]["copies"], recipe["model"]["noise_std"]
        self.everything = recipe["ema"]["scope"] == "everything"
        self.teacher = (copy.deepcopy(self.averaged()).eval().requires_grad_(False),)

    def averaged(self):
        return self.encoder if self.everything else self.encoder["context"]

    def compile_blocks(self):
        teacher = self.teacher[0]["context"] if self.everything else self.teacher[0]
        for block in [*self.encoder["context"].blocks, *teacher.blocks, *self.decoder.blocks]:
            block.compile()

    def num_tokens(self, inputs):
        embed = self.encoder["embed"]
        if isinstance(embed, Patches):
            return math.prod(embed.grid)
        length = inputs.shape[1]
        if isinstance(embed, Waves):
            for conv in list(embed.convs)[::2]:
                length = (length - conv.kernel_size[0]) // conv.stride[0] + 1
        return length

    def tokens(self, inputs):
        """What student and teacher share."""
        return self.encoder["embed"](inputs)

    def teach(self, inputs, tokens):
        """The last K blocks' results, (B, T, D) each."""
        teacher = self.teacher[0]
        if self.everything:
            return teacher["context"](teacher["embed"](inputs))[2]
        return teacher(tokens)[2]

    def predict(self, tokens, hidden):
        """(N, D): predictions at hidden tokens (B·M, T), and CLS's features (B·M, D) if there is one."""
        x = tokens.repeat_interleave(self.copies, 0)
        order = hidden.int().argsort(dim=1, stable=True)  # visible tokens first
        keep = order[:, : int((~hidden[0]).sum())]
        kept, cls, _ = self.encoder["context"](x, hidden, keep)
        kept = self.decoder.input_dropout(kept)
        rows, left, dim = x.shape[0], x.shape[1] - keep.shape[1], x.shape[2]
        noise = torch.randn(rows, left, dim, device=x.device, dtype=kept.dtype) * self.noise_std
        restore = order.argsort(1).unsqueeze(-1).expand(-1, -1, dim)
        return self.decoder(torch.cat([kept, noise], 1).gather(1, restore), hidden), cls

    def encode(self, inputs):
        return self.encoder["context"](self.tokens(inputs))[0]
