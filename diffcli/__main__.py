import sys

from diffcli.cli import main

sys.exit(main())
