"""What predictions cost as a layer and as a table of their own: memory, seconds, and the file of agl-sc export.

    python benchmarks/own_table.py                                # 100,000 spots x 18,000 genes, 265 of them predicted
    python benchmarks/own_table.py --spots 4953 --genes 31053     # the size of two Visium mouse brains

Counts are synthetic, 2 % of them above zero. Either place is written by what tl.predict writes with; memory is what the process holds
more afterwards. The ratio is that of the bytes.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import scipy.sparse
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel

from agl_sc._sdata.predictions import is_layer, write_predicted
from agl_sc._sdata.study import Study
from agl_sc.tl import to_anndata


def synthetic(n_spots: int, n_genes: int, *, seed: int = 0) -> SpatialData:
    """Spots on a square lattice with sparse counts."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(n_spots)))
    centres = np.column_stack(np.divmod(np.arange(n_spots), side)) * 10.0 + 5.0
    shapes = ShapesModel.parse(centres, geometry=0, radius=3.0)
    n_detected = max(1, n_genes // 50)
    genes = np.sort(rng.integers(0, n_genes, (n_spots, n_detected), dtype=np.int32), axis=1)
    starts = np.arange(n_spots + 1) * n_detected
    counts = scipy.sparse.csr_matrix((np.ones(genes.size, np.float32), genes.ravel(), starts), (n_spots, n_genes))
    counts.sum_duplicates()
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * n_spots), "instance": np.arange(n_spots)})
    obs.index = obs.index.astype(str)
    table = AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"gene_{number}" for number in range(n_genes)]))
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="instance")
    return SpatialData(shapes={"spots": shapes}, tables={"table": table})


def written(sdata: SpatialData, genes: list[str], write_to: Any) -> tuple[float, float]:
    """Seconds and bytes of writing predictions to a place."""
    study = replace(Study.of(sdata), write_to=write_to)
    rng, n_rows = np.random.default_rng(1), 8192
    starts = range(0, study.table.n_obs, n_rows)
    sizes = [min(n_rows, study.table.n_obs - start) for start in starts]
    blocks = (
        (slice(start, start + size), genes, rng.normal(1, 0.5, (size, len(genes))).astype(np.float32))
        for start, size in zip(starts, sizes, strict=True)
    )
    process, clock = psutil.Process(), time.perf_counter()
    before = process.memory_info().rss
    write_predicted(study, "model", genes=genes, blocks=blocks)
    return time.perf_counter() - clock, float(process.memory_info().rss - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=18_000)
    parser.add_argument("--predicted", type=int, default=265)
    arguments = parser.parse_args()
    sdata = synthetic(arguments.spots, arguments.genes)
    counts = sdata["table"].X
    held = sum(part.nbytes for part in (counts.data, counts.indices, counts.indptr))
    genes = list(sdata["table"].var_names[: arguments.predicted])
    print(
        f"counts take {held / 1e6:.0f} MB; by default predictions go to a {'layer' if is_layer(Study.of(sdata)) else 'table'}"
    )
    seconds, own = written(sdata, genes, "table")
    print(f"table: {own / 1e6:.0f} MB, {seconds:.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        path, clock = Path(folder) / "out.h5ad", time.perf_counter()
        to_anndata(sdata).write_h5ad(path, compression="gzip")
        print(f"h5ad: {path.stat().st_size / 1e6:.1f} MB, {time.perf_counter() - clock:.1f} s")
    needed = 4.0 * arguments.spots * arguments.genes
    if psutil.virtual_memory().available < 1.3 * needed:
        print(f"layer: needs {needed / 1e6:.0f} MB, which are not available here; {needed / own:.0f} times the table")
        return
    seconds, layer = written(sdata, genes, "layer")
    print(f"layer: {layer / 1e6:.0f} MB, {seconds:.1f} s; {layer / own:.0f} times the table")


if __name__ == "__main__":
    main()
