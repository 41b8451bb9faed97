"""`python -m mptune` is `mptune`."""

from mptune.cli import main

raise SystemExit(main())
