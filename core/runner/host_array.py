"""The type of arrays that are still on the host."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

HostArray: TypeAlias = np.ndarray[Any, Any]
