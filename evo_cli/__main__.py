"""`python -m evo_cli`, the same as `evo`."""

from evo_cli.main import main

main()
