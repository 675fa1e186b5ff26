"""Examples as training sees them, read by what Python users read them with: `data2vec bench data`'s peer.

`make DIR` writes files of every kind for both to read. `run RECIPE --data DIR` loads, decodes and augments them for
some seconds and prints one line of JSON. `cargo xtask bench data` runs it.
"""

import argparse
import json
import time
import tomllib
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from torchvision import transforms

RATE = 16_000
AUDIO, FILES, SECONDS = ("wav", "flac", "ogg"), 32, 10
PHOTO = (500, 375)  # width and height, as most photographs of ImageNet


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make").add_argument("dir", type=Path)
    run = commands.add_parser("run")
    run.add_argument("recipe", type=Path)
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--seconds", type=float, default=5.0)
    run.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    if args.command == "make":
        make(args.dir)
    else:
        measure(tomllib.loads(args.recipe.read_text()), args)


def make(folder):
    """Sounds that rise and fall, and pictures with edges and grain: about as large as recordings and photographs
    of that length and size once they are compressed."""
    random = np.random.default_rng(1)
    for kind in AUDIO:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    (folder / "jpeg").mkdir(parents=True, exist_ok=True)
    time_axis = np.arange(SECONDS * RATE) / RATE
    for i in range(FILES):
        pitch = 100 + 100 * random.random()
        loudness = np.abs(np.sin(2 * np.pi * (1 + random.random()) * time_axis)) ** 2
        tones = sum(np.sin(2 * np.pi * pitch * k * time_axis) / k for k in range(1, 20))
        sound = loudness * (0.2 * tones + 0.02 * random.standard_normal(len(time_axis)))
        for kind in AUDIO:
            soundfile.write(folder / kind / f"{i}.{kind}", np.clip(sound, -1, 1).astype("float32"), RATE)
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        picture = np.asarray(coarse.resize(PHOTO, Image.Resampling.BICUBIC), dtype=np.float32)
        picture = picture + 8 * random.standard_normal(picture.shape)
        picture = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
        picture.save(folder / "jpeg" / f"{i}.jpg", quality=90)


class Sounds(torch.utils.data.Dataset):
    """Recordings, normalised as a whole and cut to the longest length at random."""

    def __init__(self, files, recipe):
        self.files = files
        self.normalize = recipe["features"]["normalize"]
        self.longest = int(recipe["data"]["max_seconds"] * RATE)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        samples, rate = soundfile.read(self.files[index], dtype="float32", always_2d=True)
        if rate != RATE:
            raise SystemExit(f"error: {self.files[index]} has {rate} samples a second, not {RATE}")
        samples = torch.from_numpy(samples).mean(1)
        if self.normalize:
            samples = torch.nn.functional.layer_norm(samples, samples.shape)
        if (spare := len(samples) - self.longest) > 0:
            start = int(torch.randint(spare + 1, ()))
            samples = samples[start : start + self.longest]
        return samples, len(samples) / RATE


class Pictures(torch.utils.data.Dataset):
    """Photographs with torchvision's augmentations."""

    def __init__(self, files, recipe):
        self.files = files
        data, features = recipe["data"], recipe["features"]
        steps = [transforms.ColorJitter(*data["jitter"])] if "jitter" in data else []
        self.augment = transforms.Compose(
            [
                *steps,
                transforms.RandomResizedCrop(
                    features["image_size"],
                    data["crop_scale"],
                    data["crop_ratio"],
                    transforms.InterpolationMode.BICUBIC,
                ),
                transforms.RandomHorizontalFlip(data["flip"]),
                transforms.ToTensor(),
                transforms.Normalize(features["mean"], features["std"]),
            ]
        )

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        with Image.open(self.files[index]) as picture:
            return self.augment(picture.convert("RGB")), 1.0


def measure(recipe, args):
    torch.set_num_threads(1)  # as in a DataLoader's workers
    speech = recipe["modality"] == "speech"
    files = sorted(path for path in args.data.rglob("*") if path.is_file())
    # One worker is this process itself: no time goes into sending examples.
    loader = torch.utils.data.DataLoader(
        (Sounds if speech else Pictures)(files, recipe),
        batch_size=None,
        num_workers=args.workers if args.workers > 1 else 0,
        persistent_workers=args.workers > 1,
    )
    next(iter(loader))  # starts workers
    examples, units, start = 0, 0.0, time.perf_counter()
    while time.perf_counter() - start < args.seconds:
        for _example, size in loader:
            examples, units = examples + 1, units + size
    seconds = time.perf_counter() - start
    unit = "seconds" if speech else "images"
    print(json.dumps({"examples": examples, "units": units, "unit": unit, "seconds": seconds, "workers": args.workers}))


if __name__ == "__main__":
    main()
