"""Convert a released k-means, km.bin (joblib, scikit-learn), to an .npz file of its centres.

No code in km.bin is run. The pipeline reads km.bin too; numpy.load opens an .npz anywhere.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.errors import UserError, run
from preprocess.speech2unit.kmeans import load_kmeans, save_kmeans


def main() -> None:
    """Convert one k-means file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("km_bin", type=Path, help="k-means file to read")
    parser.add_argument("km_npz", type=Path, help=".npz file to write")
    arguments = parser.parse_args()
    if arguments.km_npz.suffix != ".npz":
        raise UserError(f"{arguments.km_npz}: expected a name that ends in .npz; rename it")
    centres = load_kmeans(arguments.km_bin)
    save_kmeans(arguments.km_npz, centres)
    shape = f"{len(centres)} clusters of {centres.shape[1]} numbers, {centres.dtype}"
    print(f"read {arguments.km_bin}: {shape}; wrote {arguments.km_npz}")
    print(f"next: --set fairseqrc.km_path={arguments.km_npz}")


if __name__ == "__main__":
    run(main)
