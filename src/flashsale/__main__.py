"""`python -m flashsale` is the command `flashsale`."""

from flashsale.cli import main

raise SystemExit(main())
