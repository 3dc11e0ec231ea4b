"""`python -m v2r_core.cli` is `v2r`."""

from v2r_core.cli.main import main

raise SystemExit(main())
