"""What a split was made with, and a hash over all its assignments, kept in ``uns``."""

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agl_sc._sdata.keys import Keys
from agl_sc._sdata.records import SplitRecord, remembered

if TYPE_CHECKING:
    from anndata import AnnData


def hash_of(table: "AnnData", assigned: NDArray[Any], sets: NDArray[np.int8] | None = None) -> str:
    """Hash over the name and the set or fold of every spot, and with folds over its set in each, (n_folds, n_obs)."""
    lines = "\n".join(f"{spot}\t{name}" for spot, name in zip(table.obs_names, assigned, strict=True))
    sha = hashlib.sha256(lines.encode())
    if sets is not None:
        sha.update(np.ascontiguousarray(sets, dtype=np.int8).tobytes())
    return sha.hexdigest()


def checked_manifest(table: "AnnData", keys: Keys) -> tuple[NDArray[Any], SplitRecord | None]:
    """Set or fold of every spot, (n_obs,) of str, and the manifest, None where the user wrote the column."""
    if keys.split not in table.obs:
        msg = f'obs["{keys.split}"] is missing; run agl_sc.pp.split(sdata) first, so that nothing is fitted on test spots.'
        raise KeyError(msg)
    assigned: NDArray[Any] = table.obs[keys.split].astype(str).to_numpy()
    manifest = remembered(table, keys, SplitRecord)
    if manifest is not None and manifest.hash != hash_of(table, assigned, manifest.sets):
        msg = f'obs["{keys.split}"] no longer matches its manifest in uns["{keys.uns}"]["split"]; run agl_sc.pp.split(sdata) again.'
        raise ValueError(msg)
    return assigned, manifest
