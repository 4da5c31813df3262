"""One run of a cross-validation: an arm in a fold with a seed, on a SpatialData of its own, kept on disk when done."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from numpy.typing import NDArray

from agl_sc._sdata.keys import Keys
from agl_sc._sdata.record import recorded
from agl_sc._sdata.table import section_of
from agl_sc.core.config import TrainConfig
from agl_sc.core.spots.genes import Normalize
from agl_sc.core.spots.spots import usable_spots
from agl_sc.core.training.epoch import batches_of
from agl_sc.pp._genes.targets_and_ranks import ChooseBy, rank_auxiliary, role_of, target_genes
from agl_sc.pp._splits.folds import Fold
from agl_sc.pp._splits.units import SETS
from agl_sc.tl._benchmark.arms import ARMS, fit_in_place

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
    score: str = "predictability"
    """Prior ranking of the auxiliary genes, where an arm has none of its own."""

    def plain(self) -> dict[str, Any]:
        """As JSON values; None, which h5ad and zarr refuse, is left out."""
        genes = self.genes if isinstance(self.genes, int | str) else list(self.genes)
        config = {name: value for name, value in asdict(self.config).items() if value is not None}
        how = {name: getattr(self, name) for name in ("choose_by", "score", "normalize", "finetune")}
        return {"genes": genes, **how, "config": config}


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """The user's data, of which a run changes nothing."""

    sdata: "SpatialData"
    """Holds images and shapes."""
    table: "AnnData"
    """Its table, with features."""
    counts: scipy.sparse.csr_matrix
    """Raw counts of the table, (n_obs, n_genes)."""
    columns: Sequence[str] = ()
    """Columns of ``var`` that runs are shown: the prior score, where that is the user's own."""

    def scratch(self, fold: Fold, keys: Keys) -> "SpatialData":
        """Images, shapes, counts and features, not copied, under a table that knows little but one fold's split."""
        from anndata import AnnData

        made_from = {"features": recorded(self.table, keys, "features")}
        own = AnnData(
            self.counts,
            obs=self.table.obs.copy(),
            var=self.table.var[list(self.columns)].copy(),
            obsm={keys.features: self.table.obsm[keys.features]},
            uns={"spatialdata_attrs": dict(self.table.uns["spatialdata_attrs"]), keys.uns: made_from},
        )
        own.obs[keys.split] = pd.Categorical(fold.assigned, categories=list(SETS))
        return _around(self.sdata, own)

    def prepared(self, fold: Fold, protocol: Protocol) -> "SpatialData":
        """The same with what the runs of a fold have in common: target genes and prior ranks of its training spots."""
        keys = protocol.keys
        scratch = self.scratch(fold, keys)
        genes: dict[str, Any] = {"genes": protocol.genes, "choose_by": protocol.choose_by}
        target_genes(scratch, **genes, normalize=protocol.normalize, key_added=keys.key_added)
        rank_auxiliary(scratch, score=protocol.score, key_added=keys.key_added)
        return scratch

    def digest(self, keys: Keys) -> str:
        """Of everything in the data that a run depends on."""
        sha = hashlib.sha256()
        for names in (self.table.obs_names, self.table.var_names, section_of(self.table)):
            sha.update("\n".join(map(str, names)).encode())
        features = np.asarray(self.table.obsm[keys.features])
        for array in (self.counts.data, self.counts.indices, self.counts.indptr, features):
            sha.update(np.ascontiguousarray(array).tobytes())
        sha.update(self.table.var[list(self.columns)].to_csv().encode())
        sha.update(json.dumps(recorded(self.table, keys, "features"), sort_keys=True, default=str).encode())
        return sha.hexdigest()


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
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls(arrays["genes"].tolist(), arrays["predicted"], int(arrays["n_updates"]))
        except (BadZipFile, EOFError, KeyError, ValueError) as error:
            msg = f"The finished run {path} is damaged ({error}); delete it to run it again."
            raise ValueError(msg) from error


def _around(sdata: "SpatialData", table: "AnnData") -> "SpatialData":
    """The same images and shapes, not copied, around another table."""
    from spatialdata import SpatialData

    return SpatialData(
        images=dict(sdata.images),
        shapes=dict(sdata.shapes),
        points=dict(sdata.points),
        tables={"table": table},
        attrs=dict(sdata.attrs),
    )


def run(prepared: "SpatialData", fold: Fold, *, name: str, seed: int, protocol: Protocol) -> Outcome:
    """Fit one arm to one fold, and predict its test spots.

    Parameters
    ----------
    prepared
        From :meth:`Source.prepared`; left as it is.
    fold
        Sets of the spots.
    name
        One of :data:`agl_sc.tl._benchmark.arms.ARMS`.
    seed
        Of training and of a random ranking.
    protocol
        What all runs have in common.
    """
    from anndata import AnnData

    keys, common = protocol.keys, prepared.tables["table"]
    own = AnnData(common.X, obs=common.obs.copy(), var=common.var.copy(), obsm=common.obsm, uns=deepcopy(common.uns))
    scratch = _around(prepared, own)
    if protocol.score == "random":
        rank_auxiliary(scratch, score="random", key_added=keys.key_added, seed=seed)
    how: dict[str, Any] = {"config": protocol.config, "finetune": protocol.finetune, "where": protocol.where}
    model = fit_in_place(scratch, name, **how, keys=keys, seed=seed)
    test, targets = fold.assigned == "test", role_of(own, keys) == "target"
    predicted = np.asarray(own.layers[keys.layer], dtype=np.float32)[np.ix_(test, targets)]
    n_updates = 0 if model is None else _n_updates(model, own, keys)
    return Outcome(list(own.var_names[targets]), predicted, n_updates)


def run_path(folder: Path, fold: Fold, *, name: str, seed: int, made_from: Mapping[str, Any]) -> Path:
    """Where the outcome of a run lies: ``fold_method_seed_digest.npz``, the digest of everything else it depends on."""
    settings = {**made_from, "arm": asdict(ARMS[name]), "sets": "\n".join(fold.assigned)}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    return folder / f"{fold.number}_{name}_{seed}_{digest[:16]}.npz"


def _n_updates(model: "Model", table: "AnnData", keys: Keys) -> int:
    """Epochs until training stopped, times the batches of one; neither searches before it nor the refit count."""
    usable = usable_spots(np.asarray(table.obsm[keys.features]), table.X)
    n_train = int((usable & (table.obs[keys.split] == "train").to_numpy()).sum())
    batches = batches_of(n_train, model.card["params"]["batch_size"], torch.Generator())
    return int(model.history["epoch"].max()) * len(batches)
