"""The same training step or encoder pass as `data2vec bench`, in plain PyTorch.

One for each line of standard input, so that both can be taken in turn; answers are lines of JSON on
standard output. `cargo xtask bench peer` runs it; benches/README.md says what is compared.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
import tomllib
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from peer_parts import hidden_tokens, regression, target


def main():
    args = arguments()
    try:
        recipe = read_recipe(args.recipe, args.set)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SystemExit(f"error: no recipe in {args.recipe}: {error}") from None
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(recipe["seed"])
    random.seed(recipe["seed"])
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"error: --device {args.device}: this PyTorch finds no GPU")
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    model, versions = build(recipe)
    model.to(device)
    model.teacher[0].to(device)
    if args.compile:
        model.compile_blocks()
    inputs = random_inputs(recipe, args.batch, args.size).to(device)
    work = Step if args.what == "step" else Infer
    once = work(recipe, model, inputs, torch.autocast(device.type, dtype, enabled=args.precision == "bf16"))
    parameters = sum(p.numel() for p in (model if args.what == "step" else model.encoder).parameters())
    say(
        ready=True,
        name=args.recipe.stem,
        parameters=parameters,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        versions=versions,
    )
    result = None
    for _ in sys.stdin:
        start = time.perf_counter()
        result = once()
        wait_for(device)
        say(seconds=time.perf_counter() - start, limit=limit(dtype, device) / 1e9)
    peak = peak_bytes(device)
    flop = None  # compiled code cannot be counted
    if not args.compile:
        with FlopCounterMode(display=False, custom_mapping=COUNTED_BY_US) as counter:
            once()
        flop = counter.get_total_flops()
    say(peak_bytes=peak, loss=result, flop=flop)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["step", "infer"])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--batch", type=int, default=2, help="sequences, before copies")
    parser.add_argument("--size", type=float, default=10.0, help="seconds of audio, or tokens")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--device", help="cpu or cuda; without it: a GPU if there is one")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks")
    return parser.parse_args()


def read_recipe(path, settings):
    recipe = tomllib.loads(path.read_text())
    for setting in settings:
        key, _, text = setting.partition("=")
        *tables, key = key.strip().split(".")
        table = recipe
        for name in tables:
            table = table.setdefault(name, {})
        try:
            table[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            table[key] = text
    return recipe


def build(recipe):
    versions = {"python": sys.version.split()[0], "torch": torch.__version__}
    if recipe["model"]["masked_input"] == "drop":
        import peer_v2

        return peer_v2.Model(recipe), versions
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched
    import peer_v1
    import transformers

    return peer_v1.MODELS[recipe["modality"]](recipe), versions | {"transformers": transformers.__version__}


def random_inputs(recipe, batch, size):
    features = recipe["features"]
    if recipe["modality"] == "speech":
        return torch.randn(batch, int(size * 16_000))
    if recipe["modality"] == "vision":
        return torch.randn(batch, features["channels"], *features["image_size"])
    return torch.randint(features["pad"] + 1, features["vocabulary"], (batch, int(size)))


class Step:
    """A whole training step: teacher, student, loss, backward, clipping, optimizer, moving average."""

    def __init__(self, recipe, model, inputs, autocast):
        self.recipe, self.model, self.inputs, self.autocast = recipe, model.train(), inputs, autocast
        config = recipe["optimizer"]
        self.parameters = list(model.parameters())
        matrices = [p for p in self.parameters if p.dim() > 1]
        vectors = [p for p in self.parameters if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config["weight_decay"]},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=recipe["schedule"]["lr"] / 1000,  # as in the warm-up
            betas=tuple(config["betas"]),
            eps=config["eps"],
            fused=True,
        )
        self.averaged = [list(part.parameters()) for part in (model.teacher[0], model.averaged())]

    def __call__(self):
        loss = self.loss()
        loss.backward()
        if clip := self.recipe["train"].get("clip_norm"):
            torch.nn.utils.clip_grad_norm_(self.parameters, clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        teacher, student = self.averaged
        with torch.no_grad():
            torch._foreach_lerp_(teacher, student, 1 - self.recipe["ema"]["decay"])
        return loss.item()

    def loss(self):
        """Scalar: the mean over hidden tokens."""
        recipe, model, inputs, copies = self.recipe, self.model, self.inputs, self.recipe["model"]["copies"]
        rows = len(inputs) * copies
        hidden = hidden_tokens(recipe, rows, model.num_tokens(inputs), inputs.device)  # (B·M, T)
        with self.autocast:
            tokens = model.tokens(inputs)
            with torch.no_grad():
                wanted = target(model.teach(inputs, tokens.detach()), recipe["target"])  # (B, T, D)
            prediction, cls = model.predict(tokens, hidden)
        count = prediction.shape[0]
        repeated = wanted.repeat_interleave(copies, 0) if copies > 1 else wanted
        loss = regression(prediction, repeated[hidden], recipe["loss"]) / count
        if cls is not None and (weight := recipe["loss"].get("cls")):
            mean = wanted.mean(1).repeat_interleave(copies, 0)
            loss = loss + regression(cls, mean, recipe["loss"]) * weight / rows
        return loss


class Infer:
    """A forward pass of the encoder."""

    def __init__(self, _recipe, model, inputs, autocast):
        model.eval()
        model.teacher = None
        self.model, self.inputs, self.autocast = model, inputs, autocast

    def __call__(self):
        with torch.inference_mode(), self.autocast:
            return self.model.encode(self.inputs).float().mean().item()


def limit(dtype, device):
    """Floating-point operations a second that a large matrix product reaches."""
    n = 2048 if device.type == "cpu" else 8192
    a, b = torch.ones(n, n, dtype=dtype, device=device), torch.ones(n, n, dtype=dtype, device=device)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        _product = a @ b
        wait_for(device)
        times.append(time.perf_counter() - start)
    return 2 * n**3 / statistics.median(times)


def convolution_gradients(output, x, weight, _bias, _stride, _padding, _dilation, transposed, *rest, **_):
    """Operations of a convolution's backward pass: for inputs and for weights as many as forwards.

    PyTorch's own formula leaves groups out of those for weights, and so counts 16 groups 16-fold.
    """
    wants_inputs, wants_weights, _wants_bias = rest[-1]
    return (wants_inputs + wants_weights) * conv_flop_count(x, weight, output, transposed)


COUNTED_BY_US = {torch.ops.aten.convolution_backward: convolution_gradients}


def wait_for(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device):
    """Most memory at once: what tensors took on a GPU, else the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((int(l.split()[1]) * 1024 for l in status.splitlines() if l.startswith("VmHWM:")), None)


def say(**values):
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
