"""Load precompiled kernels: resolve the variant that fits, prove its bytes, bind it.

    from hub_loader import get_kernel

    attention = get_kernel("org/paged-attention")

Importing this package imports neither torch nor huggingface_hub.
"""

from __future__ import annotations
