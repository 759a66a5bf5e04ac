"""Puts the folder of shared test helpers on the path, and gives each process of tests a core."""

import os
import sys
from pathlib import Path

# PyTorch's threads wait for each other actively, and two processes of two threads on two cores
# stand in each other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).parent))
