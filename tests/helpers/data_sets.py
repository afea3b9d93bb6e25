"""Data sets on the disk: their formats, their bytes, and the command that makes them."""

import hashlib

from click.testing import CliRunner

from ecgan_cli.main import cli

FORMATS = ["webdataset", "parquet", "folder"]


def contents(folder):
    """Every file with its sum, hidden ones too; not what tells of times and of --out."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in {"log.jsonl", "request.json", "label-check.json"}
    }


def run_cli(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments])
