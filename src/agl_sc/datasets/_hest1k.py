"""Downloading samples of HEST-1k."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from agl_sc._paths import check_parent
from agl_sc._sdata.table import near_matches
from agl_sc.core.arguments import check_flag

logger = logging.getLogger(__name__)

REPOSITORY = "MahmoodLab/hest"
PAGE = f"https://huggingface.co/datasets/{REPOSITORY}"
_FILES = {"st": ".h5ad", "metadata": ".json", "patches": ".h5", "wsis": ".tif"}


def hest1k(
    ids: str | Sequence[str],
    *,
    folder: str | Path = "hest",
    wsi: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> list[Path]:
    """Download samples of HEST-1k, for :func:`agl_sc.io.read_hest`.

    The data are under CC BY-NC-SA 4.0, for non-commercial use; access has to be requested once, on the page of the data
    set, and is granted at once. A file that is there already, and complete, is not downloaded again; an interrupted
    download goes on where it stopped.

    Parameters
    ----------
    ids
        Samples, such as ``"TENX152"``.
    folder
        Where ``st``, ``metadata``, ``patches`` and ``wsis`` are put; made where there is none.
    wsi
        Download the whole-slide images too, of about a gigabyte each; without them a slide is put together from patches.
    revision
        Branch, tag or commit of the data set; the newest by default.
    token
        Access token of Hugging Face; that of ``hf auth login`` or ``HF_TOKEN`` by default.

    Returns
    -------
    The files.

    Raises
    ------
    PermissionError
        Access has not been requested, or there is no token.
    ConnectionError
        There is no network, or ``HF_HUB_OFFLINE`` is set, and a file is not in the folder.
    KeyError
        There is no such sample.
    ValueError
        An id is not one.

    References
    ----------
    Jaume et al., HEST-1k, NeurIPS 2024, arXiv 2406.16192; https://huggingface.co/datasets/MahmoodLab/hest.

    Examples
    --------
    >>> import agl_sc
    >>> files = agl_sc.datasets.hest1k("TENX152", folder="hest")  # doctest: +SKIP
    >>> sdata = agl_sc.io.read_hest("hest", "TENX152")  # doctest: +SKIP
    """
    check_flag("wsi", wsi)
    names = [ids] if isinstance(ids, str) else list(ids)
    wrong = [name for name in names if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]+\d+", name)]
    if wrong or not names:
        msg = f"ids={(wrong or names)!r} names no sample of HEST-1k; pass such as 'TENX152', listed at {PAGE}."
        raise ValueError(msg)
    folder = check_parent(folder)
    files = [f"{kind}/{name}{suffix}" for name in names for kind, suffix in _FILES.items() if wsi or kind != "wsis"]
    try:
        _download(folder, files, names, revision=revision, token=token)
    except ConnectionError as error:
        if not all((folder / file).is_file() for file in files):
            raise
        logger.warning("%s; the files of an earlier download are used.", str(error).partition(";")[0])
    return [folder / file for file in files]


def _download(folder: Path, files: list[str], names: list[str], *, revision: str | None, token: str | None) -> None:
    """Fetch files, turning what huggingface_hub says into one sentence."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    # Without a network come errors of the HTTP library behind huggingface_hub, which depends on its release.
    unreachable: tuple[type[Exception], ...] = (HfHubHTTPError.__bases__[0], OSError, RuntimeError)
    try:
        info = HfApi().dataset_info(REPOSITORY, revision=revision, token=token, timeout=20)
        _check_known(files, names, known=[file.rfilename for file in info.siblings or ()])
        snapshot_download(
            REPOSITORY, repo_type="dataset", revision=info.sha, local_dir=folder, allow_patterns=files, token=token
        )
    except RevisionNotFoundError as error:
        msg = f"revision={revision!r} is none of {REPOSITORY}; leave it out for the newest, or pick one at {PAGE}/commits/main."
        raise KeyError(msg) from error
    except (GatedRepoError, RepositoryNotFoundError) as error:  # without a token a gated data set may look like none
        msg = f"HEST-1k is gated: request access at {PAGE}, which is granted at once, then run `hf auth login` or set HF_TOKEN."
        raise PermissionError(msg) from error
    except unreachable as error:
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            msg = f"Hugging Face refuses the token; request access at {PAGE}, then run `hf auth login` or set HF_TOKEN."
            raise PermissionError(msg) from error
        said = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        msg = f"HEST-1k could not be downloaded ({said}); check the network and HF_HUB_OFFLINE, or put the files listed at {PAGE} into '{folder}'."
        raise ConnectionError(msg) from error


def _check_known(files: list[str], names: list[str], *, known: list[str]) -> None:
    """Refuse samples, or files of them, that the data set has not."""
    samples = [Path(file).stem for file in known if file.startswith("st/")]
    unknown = [name for name in names if name not in samples]
    missing = [file for file in files if file not in known]
    if unknown or missing:
        which = ", ".join((unknown or missing)[:3])
        msg = f"HEST-1k has no {which}{near_matches(unknown, samples)}; its samples are listed at {PAGE}."
        raise KeyError(msg)
