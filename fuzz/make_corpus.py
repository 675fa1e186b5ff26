"""Writes the generated seeds of the corpus: torch.save, safetensors, archives, files with checksums.

    python make_corpus.py

needs torch, safetensors and the programs xz and zstd.
"""

import argparse
import gzip
import hashlib
import io
import json
import struct
import subprocess
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

CORPUS = Path(__file__).parent / "corpus"


def write(name, content):
    path = CORPUS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def gz(content):
    return gzip.compress(content, mtime=0)


def pickles():
    weights = OrderedDict(
        [("encoder.weight", torch.arange(6.0).reshape(2, 3)), ("encoder.bias", torch.zeros(2).half())]
    )
    weights["step"] = torch.tensor(7)
    full = {
        "args": argparse.Namespace(arch="data2vec", layers=2, lr=[0.1, 1e-3], names=("a", None, True)),
        "cfg": {"model": {"depth": 2, "dropout": 0.1}},
        "model": weights,
        "history": [1, 2**40, -1, {"x": b"bytes"}],
    }
    full["model"]["tied"] = weights["encoder.weight"].t()
    for name, value, new in [("zip", full, True), ("legacy", full, False), ("plain", dict(weights), True)]:
        out = io.BytesIO()
        torch.save(value, out, _use_new_zipfile_serialization=new)
        write(f"pickle/{name}", out.getvalue())
    (CORPUS / "safetensors").mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in weights.items() if name != "tied"}
    save_file(tensors, CORPUS / "safetensors/small", metadata={"format": "pt"})


def checkpoints():
    position = {"step": 1, "next_batch": 12}
    digest = hashlib.sha256(b"weights").hexdigest()
    files = {"model.safetensors": {"bytes": 7, "sha256": digest}}
    sealed = json.dumps([2, position, files], separators=(",", ":")).encode()
    digest = hashlib.sha256(sealed).hexdigest()
    manifest = {"format": 2, "position": position, "files": files, "sha256": digest}
    write("checkpoint/format-2", json.dumps(manifest, indent=2).encode())


def images():
    pixels = bytes((i * 37) % 256 for i in range(3 * 8 * 8))
    idx = struct.pack(">4B3I", 0, 0, 8, 3, 3, 8, 8) + pixels
    write("idx/plain", idx)
    write("idx/gzipped", gz(idx))


def texts():
    lines = b"The state of the union.\n\nPeace, and law.\nA people\xc3\xa9.\n"
    objects = b'{"text": "The state"}\n{"id": 3, "text": "of the union\\u00e9"}\n'
    for kind, content in enumerate([lines, objects, gz(lines), gz(objects)]):
        write(f"text/{kind}", bytes([kind]) + content)
    table = b"sentence1\tsentence2\tlabel\nA man.\tA woman.\t0\nPeace\tLaw\t1\nx y\tz\t2.5\n"
    cola = b"gj04\t1\t\tOur friends won.\ngj04\t0\t*\tWe yelled us hoarse of.\n"
    labelled = b'{"text": "good", "label": 1}\n{"text": "bad", "label": 0}\n'
    ratings = b"r1\t5.0\tgood film\nr2\t0.5\tbad film\n"
    for kind, content in enumerate([table, labelled, ratings, gz(table)]):
        write(f"table/{kind}", bytes([kind]) + content)
    write("table/cola", b"\0" + cola)


def archives():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in [("./a/one.txt", b"one\n" * 20), ("a/" + "long" * 30, b"two"), ("a/empty", b"")]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("a/link")
        link.type, link.linkname = tarfile.SYMTYPE, "../../etc/passwd"
        tar.addfile(link)
    plain = out.getvalue()
    pax = io.BytesIO()
    with tarfile.open(fileobj=pax, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("é" * 60)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"pax"))
    run = lambda *command, given: subprocess.run(command, input=given, capture_output=True, check=True).stdout
    write("archive/tar", plain)
    write("archive/pax", pax.getvalue())
    write("archive/tar.gz", gz(plain))
    write("archive/tar.xz", run("xz", "-c", given=plain))
    write("archive/tar.zst", run("zstd", "-c", given=plain))
    member = gz(plain)
    deb = b"!<arch>\n"
    for name, content in [(b"debian-binary", b"2.0\n"), (b"control.tar", b"odd"), (b"data.tar.gz", member)]:
        deb += b"%-16s%-12d%-6d%-6d%-8d%-10d`\n" % (name, 0, 0, 0, 100644, len(content))
        deb += content + b"\n" * (len(content) % 2)
    write("archive/deb", deb)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, how in [("a/stored", zipfile.ZIP_STORED), ("a/deflated", zipfile.ZIP_DEFLATED)]:
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), b"content " * 20, compress_type=how)
    write("archive/zip", out.getvalue())


if __name__ == "__main__":
    for make in [pickles, checkpoints, images, texts, archives]:
        make()
