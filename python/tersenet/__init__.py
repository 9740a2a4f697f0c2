"""tersenet."""

from tersenet._core import CODERS, LAYOUTS, PAIRS, SIMD, Codebook, CompressedMatrix, __version__
