"""Where things lie: the checkout, and the folder of images that may lie beside it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
EXAMPLES = ROOT / "examples"
DATA = ROOT.parent / "shared" / "data"
"""Real images for optional tests; they skip where it isn't there."""
