"""Writes the seeds of shards: fixtures of crates/source, prefixed with a byte for the file type.

    python make_shards.py
"""

from pathlib import Path

HERE = Path(__file__).parent
FIXTURES = HERE / "../crates/source/tests/fixtures"
CORPUS = HERE / "corpus/shard"

CORPUS.mkdir(parents=True, exist_ok=True)
for name, kind, fixture in [
    ("tar", 0, "wds-000001.tar"),
    ("pax", 0, "pax.tar"),
    ("gnu", 0, "gnu.tar"),
    ("sparse", 0, "sparse-gnu.tar"),
    ("jsonl", 1, "rows.jsonl"),
    ("tar-gz", 2, "wds-000000.tar.gz"),
    ("jsonl-gz", 3, "rows.jsonl.gz"),
]:
    content = (FIXTURES / fixture).read_bytes()
    # Trim the padding of archives to the two zero blocks of the end marker: padding slows mutations down.
    if kind == 0:
        content = content.rstrip(b"\0") + bytes(1536)
        content = content[: len(content) // 512 * 512]
    (CORPUS / name).write_bytes(bytes([kind]) + content)
