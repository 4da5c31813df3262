"""One run of a cross-validation: an arm in a fold with a seed, on a SpatialData of its own, kept on disk when done."""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from agl_sc._paths import replacing
from agl_sc._sdata.predictions import predicted_of
from agl_sc._sdata.records import AddressRecord, FeatureRecord, TileRecord, remember, remembered
from agl_sc._sdata.reference import ReferenceRecord
from agl_sc._sdata.study import Study
from agl_sc.core.arguments import check_flag
from agl_sc.core.config import TrainConfig
from agl_sc.core.once import Once
from agl_sc.core.spots.genes import Normalize
from agl_sc.core.spots.spots import usable_spots
from agl_sc.core.training.epoch import batches_of
from agl_sc.pp._features.made_from import made_by_embed
from agl_sc.pp._genes.targets_and_ranks import ChooseBy, choose_targets, rank_study, role_of
from agl_sc.pp._splits.folds import Fold
from agl_sc.pp._splits.split import assigned_in
from agl_sc.pp._splits.units import SETS
from agl_sc.tl._benchmark.arms import ARMS, fit_in_place

if TYPE_CHECKING:
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
    choose_by: ChooseBy = "variance"
    """What the target genes chosen are highest in."""
    score: str = "predictability"
    """Prior ranking of the auxiliary genes, where an arm has none of its own."""

    def __post_init__(self) -> None:
        check_flag("finetune", self.finetune)

    def plain(self) -> dict[str, Any]:
        """As JSON values; None, which h5ad and zarr refuse, is left out."""
        genes = self.genes if isinstance(self.genes, int | str) else list(self.genes)
        config = {name: value for name, value in self.config.plain().items() if value is not None}
        how = {name: getattr(self, name) for name in ("choose_by", "score", "normalize", "finetune")}
        return {"genes": genes, **how, "config": config}


@dataclass(frozen=True, slots=True, eq=False)
class RunData:
    """The user's data, of which a run changes nothing."""

    study: Study
    """Images, shapes and the table, with features."""
    columns: Sequence[str] = ()
    """Columns of ``var`` that runs are shown: the prior score, where that is the user's own."""

    def scratch(self, fold: Fold) -> Study:
        """Images, shapes, counts and features, not copied, under a table that knows little but one fold's split."""
        from anndata import AnnData

        table, keys = self.study.table, self.study.keys
        own = AnnData(
            self.study.counts,
            obs=table.obs.copy(),
            var=table.var[list(self.columns)].copy(),
            obsm={keys.features: table.obsm[keys.features]},
            uns={"spatialdata_attrs": dict(table.uns["spatialdata_attrs"])},
        )
        known = (remembered(table, keys, kind) for kind in (FeatureRecord, TileRecord, ReferenceRecord, AddressRecord))
        remember(own, keys, *(record for record in known if record is not None))
        own.obs[keys.split] = pd.Categorical(fold.assigned, categories=list(SETS))
        return self.study.around(own)

    def prepared(self, fold: Fold, protocol: Protocol) -> "Prepared":
        """The same with target genes and prior ranks of the fold's training spots, for all of its runs."""
        scratch = self.scratch(fold)
        choose_targets(scratch, genes=protocol.genes, choose_by=protocol.choose_by, normalize=protocol.normalize)
        rank_study(scratch, score=protocol.score)
        return Prepared(scratch)

    def digest(self) -> str:
        """Digest of everything in the data that a run depends on."""
        table, counts = self.study.table, self.study.counts
        sha = hashlib.sha256()
        for names in (table.obs_names, table.var_names, self.study.section_names):
            sha.update("\n".join(map(str, names)).encode())
        features = np.asarray(table.obsm[self.study.keys.features])
        for array in (counts.data, counts.indices, counts.indptr, features):
            sha.update(np.ascontiguousarray(array).tobytes())
        sha.update(table.var[list(self.columns)].to_csv().encode())
        sha.update(json.dumps(made_by_embed(self.study).plain(), sort_keys=True, default=str).encode())
        return sha.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What the runs of a fold have in common."""

    study: Study
    """With target genes and prior ranks; left as it is."""
    once: Once = field(default_factory=Once)
    """What does not depend on a run's seed: closed forms, searches, ranks."""


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
        try:
            with replacing(path) as fresh, fresh.open("wb") as file:
                np.savez(file, genes=np.array(self.genes), predicted=self.predicted, n_updates=self.n_updates)
        except OSError as error:
            msg = f"A finished run could not be written to {path} ({error.strerror or error}); make room and run again, and it goes on from there."
            raise OSError(msg) from error

    @classmethod
    def read(cls, path: Path) -> "Outcome":
        """What :meth:`write` wrote."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls(arrays["genes"].tolist(), arrays["predicted"], int(arrays["n_updates"]))
        except (BadZipFile, EOFError, KeyError, OSError, TypeError, ValueError, zlib.error) as error:
            msg = f"The finished run {path} is damaged ({error}); delete it to run it again."
            raise ValueError(msg) from error


def run(prepared: Prepared, fold: Fold, *, name: str, seed: int, protocol: Protocol) -> Outcome:
    """Fit one arm to one fold, and predict its test spots.

    Parameters
    ----------
    prepared
        From :meth:`RunData.prepared`.
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

    common = prepared.study.table
    own = AnnData(common.X, obs=common.obs.copy(), var=common.var.copy(), obsm=common.obsm, uns=deepcopy(common.uns))
    scratch = prepared.study.around(own)
    if protocol.score == "random":
        rank_study(scratch, score="random", seed=seed)
    model = fit_in_place(
        scratch, name, config=protocol.config, finetune=protocol.finetune, seed=seed, once=prepared.once
    )
    test, targets = fold.assigned == "test", role_of(scratch) == "target"
    predicted = predicted_of(scratch, "model").of(own.var_names[targets])[test]
    n_updates = 0 if model is None else _n_updates(model, scratch)
    return Outcome(list(own.var_names[targets]), predicted, n_updates)


def run_path(folder: Path, fold: Fold, *, name: str, seed: int, made_from: Mapping[str, Any]) -> Path:
    """Where the outcome of a run lies: ``fold_method_seed_digest.npz``, the digest of everything else it depends on."""
    settings = {**made_from, "arm": asdict(ARMS[name]), "sets": "\n".join(fold.assigned)}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    return folder / f"{fold.number}_{name}_{seed}_{digest[:16]}.npz"


def _n_updates(model: "Model", study: Study) -> int:
    """Epochs until training stopped, times the batches of one; neither searches before it nor the refit count."""
    usable = usable_spots(np.asarray(study.table.obsm[study.keys.features]), study.counts)
    n_train = int((usable & (assigned_in(study) == "train")).sum())
    batches = batches_of(n_train, model.card["params"]["batch_size"], torch.Generator())
    return int(model.history["epoch"].max()) * len(batches)


Runs = dict[tuple[int, str, int], Outcome]
"""By number of the fold, method and seed."""
