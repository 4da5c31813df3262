"""One run of a cross-validation: an arm in a fold with a seed, on a SpatialData of its own, kept on disk when done."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from numpy.typing import NDArray

from agl_sc._boundary import recorded, section_of
from agl_sc._keys import Keys
from agl_sc.core.config import TrainConfig
from agl_sc.core.epoch import batches_of
from agl_sc.pp._folds import Fold
from agl_sc.pp._genes import ChooseBy, Normalize, rank_auxiliary, role_of, target_genes
from agl_sc.pp._split import SETS
from agl_sc.tl._arms import ARMS, fit_in_place

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from agl_sc.model import Model


@dataclass(frozen=True, slots=True)
class Protocol:
    """What all runs have in common."""

    config: TrainConfig
    """Settings of training."""
    genes: int | Sequence[str]
    """Target genes, as :func:`agl_sc.pp.target_genes` takes them."""
    normalize: Normalize
    """Units in which genes are modelled."""
    finetune: bool
    """Train the whole encoder too."""
    where: dict[str, Any]
    """``image_key``, ``shapes_key`` and ``coordinate_system``."""
    keys: Keys
    """Names of the slots."""
    choose_by: ChooseBy = "variance"
    """What the target genes chosen are highest in."""

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        genes = self.genes if isinstance(self.genes, int | str) else list(self.genes)
        how = {"genes": genes, "choose_by": self.choose_by, "normalize": self.normalize, "finetune": self.finetune}
        return {"config": asdict(self.config), **how}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run leaves behind."""

    genes: list[str]
    """Names of the target genes of the fold."""
    predicted: NDArray[np.float32]
    """Of the test spots, in the units of the layer, (n_test, n_genes)."""
    n_updates: int
    """Updates of the network until training stopped; 0 for a baseline."""

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        staged = path.with_name(f".{path.name}.new")
        try:
            with staged.open("wb") as file:
                np.savez(file, genes=np.array(self.genes), predicted=self.predicted, n_updates=self.n_updates)
                file.flush()
                os.fsync(file.fileno())
            staged.replace(path)
        except OSError as error:
            staged.unlink(missing_ok=True)
            msg = f"A finished run could not be written to {path} ({error.strerror or error}); make room and run again, and it goes on from there."
            raise OSError(msg) from error

    @classmethod
    def read(cls, path: Path) -> "Outcome":
        """What :meth:`write` wrote."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(arrays["genes"].tolist(), arrays["predicted"], int(arrays["n_updates"]))
        except (BadZipFile, EOFError, KeyError, ValueError) as error:
            msg = f"The finished run {path} is damaged ({error}); delete it to run it again."
            raise ValueError(msg) from error


def run(
    sdata: "SpatialData",
    table: "AnnData",
    counts: scipy.sparse.csr_matrix,
    fold: Fold,
    *,
    name: str,
    seed: int,
    protocol: Protocol,
) -> Outcome:
    """Fit one arm to one fold, everything anew, and predict its test spots.

    Parameters
    ----------
    sdata
        Holds images and shapes; nothing of it is changed.
    table
        Its table, with features.
    counts
        Raw counts of the table, (n_obs, n_genes).
    fold
        Sets of the spots.
    name
        One of :data:`agl_sc.tl._arms.ARMS`.
    seed
        Of training and of a random ranking.
    protocol
        What all runs have in common.
    """
    keys = protocol.keys
    scratch = scratch_of(sdata, table, counts, fold, keys)
    own = scratch.tables["table"]
    genes: dict[str, Any] = {"genes": protocol.genes, "choose_by": protocol.choose_by}
    target_genes(scratch, **genes, normalize=protocol.normalize, key_added=keys.key_added)
    rank_auxiliary(scratch, key_added=keys.key_added, seed=seed)
    how: dict[str, Any] = {"config": protocol.config, "finetune": protocol.finetune, "where": protocol.where}
    model = fit_in_place(scratch, name, **how, keys=keys, seed=seed)
    test, targets = fold.assigned == "test", role_of(own, keys) == "target"
    predicted = np.asarray(own.layers[keys.layer], dtype=np.float32)[np.ix_(test, targets)]
    return Outcome(list(own.var_names[targets]), predicted, _n_updates(model, own, keys, protocol.config))


def scratch_of(
    sdata: "SpatialData", table: "AnnData", counts: scipy.sparse.csr_matrix, fold: Fold, keys: Keys
) -> "SpatialData":
    """Images, shapes, counts and features of the user's, not copied, under a table that knows nothing but one fold's split."""
    from anndata import AnnData
    from spatialdata import SpatialData

    own = AnnData(
        counts,
        obs=table.obs.copy(),
        var=pd.DataFrame(index=table.var_names),
        obsm={keys.features: table.obsm[keys.features]},
        uns={
            "spatialdata_attrs": dict(table.uns["spatialdata_attrs"]),
            keys.uns: {"features": recorded(table, keys, "features")},
        },
    )
    own.obs[keys.split] = pd.Categorical(fold.assigned, categories=list(SETS))
    return SpatialData(
        images=dict(sdata.images),
        shapes=dict(sdata.shapes),
        points=dict(sdata.points),
        tables={"table": own},
        attrs=dict(sdata.attrs),
    )


def data_digest(table: "AnnData", counts: scipy.sparse.csr_matrix, keys: Keys) -> str:
    """Of everything in the data that a run depends on."""
    sha = hashlib.sha256()
    for names in (table.obs_names, table.var_names, section_of(table)):
        sha.update("\n".join(map(str, names)).encode())
    for array in (counts.data, counts.indices, counts.indptr, np.asarray(table.obsm[keys.features])):
        sha.update(np.ascontiguousarray(array).tobytes())
    sha.update(json.dumps(recorded(table, keys, "features"), sort_keys=True, default=str).encode())
    return sha.hexdigest()


def run_path(folder: Path, fold: Fold, *, name: str, seed: int, made_from: dict[str, Any]) -> Path:
    """Where the outcome of a run lies: ``fold_method_seed_digest.npz``, the digest of all that it depends on."""
    settings = {**made_from, "arm": asdict(ARMS[name]), "seed": seed, "sets": hash_of(fold.assigned)}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    return folder / f"{fold.number}_{name}_{seed}_{digest[:16]}.npz"


def hash_of(assigned: NDArray[Any]) -> str:
    """Digest of the set of every spot."""
    return hashlib.sha256("\n".join(map(str, assigned)).encode()).hexdigest()


def _n_updates(model: "Model | None", table: "AnnData", keys: Keys, config: TrainConfig) -> int:
    """Epochs until training stopped, times the batches of one; neither searches before it nor the refit count."""
    if model is None:
        return 0
    with_counts = np.asarray(table.X.sum(axis=1)).ravel() > 0
    usable = with_counts & np.isfinite(np.asarray(table.obsm[keys.features])).all(axis=1)
    n_train = int((usable & (table.obs[keys.split] == "train").to_numpy()).sum())
    return int(model.history["epoch"].max()) * len(batches_of(n_train, config.batch_size, torch.Generator()))
