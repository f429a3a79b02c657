"""`python -m studio ...` is the `bicot` command, for `ray job submit --working-dir .`."""

from studio.cli import main

main()
