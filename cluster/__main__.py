"""`python -m cluster ...` is the `bicot` command, for `ray job submit --working-dir .`."""

from cluster.cli import main

main()
