#!/usr/bin/env python3
"""What KenLM and pyctcdecode make of small language models and random log-probabilities.

    python3 -m venv .venv && .venv/bin/pip install numpy==1.26.4 kenlm==0.3.0 pyctcdecode==0.5.0
    .venv/bin/python crates/speech/tests/goldens/make.py BUILD_BINARY

BUILD_BINARY is KenLM's program of that name, which the package's sources hold (`lm/build_binary_main.cc`).
Writes, beside this file: small.arpa, small.probing, small.trie, lm.json, decoders.json.
"""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import kenlm
import numpy as np
from pyctcdecode import Alphabet, BeamSearchDecoderCTC, LanguageModel

HERE = Path(__file__).parent
WORDS = ["a", "ab", "abba", "b", "ba", "bab", "cab", "c", "ac", "é", "straße", "it's"]


def arpa(path, order=4, seed=1):
    """A model with arbitrary weights. Each context is there, but not each ending: of some n-grams the
    last words alone are no n-gram, as happens where models were pruned."""
    rng = random.Random(seed)
    levels = [[(w,) for w in ["<unk>", "<s>", "</s>", *WORDS]]]
    for n in range(2, order + 1):
        grams = set()
        for before in levels[-1]:
            if before[-1] in ("</s>", "<unk>"):
                continue
            for word in ["</s>", *WORDS]:
                ending = (*before[1:], word) in levels[-1]
                if rng.random() < (0.5 if n == 2 else 0.5 if ending else 0.02):
                    grams.add((*before, word))
        levels.append(sorted(grams))
    lines = ["", "\\data\\", *(f"ngram {n}={len(level)}" for n, level in enumerate(levels, 1)), ""]
    for n, level in enumerate(levels, 1):
        lines.append(f"\\{n}-grams:")
        for gram in level:
            prob = -99 if gram == ("<s>",) else -round(rng.uniform(0.05, 3), 5)
            backoff = "" if n == order or gram[-1] in ("</s>", "<unk>") else f"\t{-round(rng.uniform(0, 1), 5)}"
            lines.append(f"{prob}\t{' '.join(gram)}{backoff}")
        lines.append("")
    lines += ["\\end\\", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def scores(model):
    rng = random.Random(2)
    sentences = ["", "a", "zebra", "straße é it's", "a zebra a", "<s> a </s>"]
    sentences += [" ".join(rng.choice([*WORDS, "zebra"]) for _ in range(rng.randint(1, 9))) for _ in range(60)]
    out = []
    for text in sentences:
        whole = [[bos, eos, model.score(text, bos=bos, eos=eos)] for bos in (True, False) for eos in (True, False)]
        words = [[p, n, oov] for p, n, oov in model.full_scores(text)]
        out.append({"text": text, "whole": whole, "words": words})
    return out


def log_probs(rng, frames, labels, sharpness):
    x = rng.normal(size=(frames, labels)) * sharpness
    x = x - np.log(np.exp(x).sum(1, keepdims=True))
    return np.round(x, 4).astype(np.float32)


def decoders(model):
    labels = ["<pad>", "|", "a", "b", "c"]
    alphabet = Alphabet.build_alphabet(["", " ", "a", "b", "c"])
    rng = np.random.default_rng(3)
    everything = dict(beam_width=100_000, beam_prune_logp=-1e9, token_min_logp=-1e9)
    cases = []
    for kind, count, frames, sharpness, search in [
        ("all", 12, 7, 1.5, everything),
        ("beam", 12, 40, 4.0, dict(beam_width=1000, beam_prune_logp=-1e9, token_min_logp=-1e9)),
    ]:
        for number in range(count):
            x = log_probs(rng, frames, len(labels), sharpness)
            # What the decoder itself computes with.
            settings = None
            lm = None
            if number % 2:
                settings = {"lm_weight": 0.4 + 0.1 * number, "word_score": 0.5, "unknown_score": 0.0}
                lm = LanguageModel(
                    model, None, alpha=settings["lm_weight"], beta=settings["word_score"],
                    unk_score_offset=0.0, score_boundary=False,
                )
            decoder = BeamSearchDecoderCTC(alphabet, lm)
            beams = decoder.decode_beams(x, **search)
            # Where a text ends in a separator, pyctcdecode weighs an empty word after it; so what the language
            # model adds is taken from KenLM.
            found = []
            for text, _, words, logit_score, _ in beams:
                bonus = 0.0
                if settings:
                    log10 = model.score(text, bos=False, eos=False)
                    bonus = settings["lm_weight"] * math.log(10) * log10 + settings["word_score"] * len(text.split())
                found.append({"text": text, "score": logit_score + bonus})
            best = sorted(found, key=lambda one: -one["score"])[:5]
            greedy = "".join(
                labels[k] for t, k in enumerate(x.argmax(1)) if k and (t == 0 or k != x.argmax(1)[t - 1])
            )
            cases.append({
                "kind": kind, "lm": settings, "log_probs": [[float(f"{v:.4f}") for v in row] for row in x],
                "best": best, "greedy": " ".join(greedy.replace("|", " ").split()),
            })
    return {"labels": labels, "cases": cases}


def main():
    path = HERE / "small.arpa"
    arpa(path)
    for kind in ("probing", "trie"):
        # Room for the endings that are no n-grams of their own.
        room = ["-p", "3"] if kind == "probing" else []
        subprocess.run([sys.argv[1], "-s", *room, kind, path, HERE / f"small.{kind}"], check=True)
    model = kenlm.Model(str(path))
    for kind in ("probing", "trie"):
        assert all(
            math.isclose(a["whole"][0][2], b["whole"][0][2], abs_tol=1e-4)
            for a, b in zip(scores(model), scores(kenlm.Model(str(HERE / f"small.{kind}"))))
        )
    dump = lambda name, value: (HERE / name).write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
    dump("lm.json", {"order": model.order, "sentences": scores(model)})
    dump("decoders.json", decoders(model))


main()
