"""The functions that lower ATen operators: importing this package registers all of them.

To cover another operator, write its function beside its kin, under `@lowers` with torch's name.
"""

from tersenet.exporting.operators import (
    convolutions,
    elementwise,
    normalization,
    products,
    shaping,
    windows,
)

__all__ = ["convolutions", "elementwise", "normalization", "products", "shaping", "windows"]
