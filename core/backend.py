"""The only door to mlx: prepares the process, then imports it.

Every module that needs mlx writes ``from ..backend import mx``, so that nothing can import mlx
before the preparation is done.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

__all__ = ["mx", "nn"]
