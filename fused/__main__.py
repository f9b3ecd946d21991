"""`python -m fused` is the `ipfsfs` command."""

from fused.cli.main import console_main

console_main()
