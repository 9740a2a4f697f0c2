"""tersenet."""

from tersenet import bounds
from tersenet._core import CODERS, LAYOUTS, PAIRS, SIMD, Codebook, CompressedMatrix, __version__
