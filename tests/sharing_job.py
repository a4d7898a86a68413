"""A task in a file of its own, which other processes can import."""

import os
import signal

from diffcli.errors import NumericalError
