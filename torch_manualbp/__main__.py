"""``python -m torch_manualbp``."""

import sys

from torch_manualbp.cli import main

sys.exit(main())
