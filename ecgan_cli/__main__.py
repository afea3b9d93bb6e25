"""``python -m ecgan_cli``, which is what torchrun starts."""

from ecgan_cli.main import cli

cli()
