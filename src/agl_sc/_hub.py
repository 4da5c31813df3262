"""A model on the Hugging Face hub: what is pushed, what a person reads there, and what is refused on the way back."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from agl_sc._model_file import CARD, FORMAT, WEIGHTS, read_model
from agl_sc._model_readme import ModelCardText, readme_of
from agl_sc.core.encoders.licences import licence_of
from agl_sc.core.encoders.load import OFFLINE, without_path
from agl_sc.core.encoders.pathology import card_of

if TYPE_CHECKING:
    from agl_sc.model import Model

logger = logging.getLogger(__name__)

README = "README.md"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


class OnHub:
    """Methods of a model that go to the Hugging Face hub and come from it."""

    __slots__ = ()

    def push_to_hub(
        self,
        repo: str,
        *,
        tissue: str,
        patients: str | None = None,
        licence: str | None = None,
        limits: str | None = None,
        citation: str | None = None,
        private: bool = True,
        revision: str | None = None,
        token: str | None = None,
    ) -> str:
        """Share the model on the Hugging Face hub: its two files, and a README that a person reads, in one commit.

        Parameters
        ----------
        repo
            ``"owner/name"``; made where it does not exist.
        tissue
            Organ, species and disease of the training sections, as the README says it.
        patients
            Whom the sections are of: how many patients or animals, and which.
        licence
            Of the model, such as ``"CC-BY-4.0"``; that of the encoder's weights by default, which is stated in any case.
        limits
            What the model must not be used for, beside what the README always says.
        citation
            How to cite the model and its data.
        private
            Whether a new repository is seen by its owner alone.
        revision
            Branch to write to; the main one by default.
        token
            Of Hugging Face; that of ``hf auth login`` or HF_TOKEN by default.

        Returns
        -------
        Address of the commit.

        Raises
        ------
        ValueError
            The model holds fine-tuned weights of an encoder to which access has to be requested, or of unknown licence; its
            encoder is a file of this machine.
        PermissionError
            The token may not write there.
        ConnectionError
            The hub could not be reached.

        Examples
        --------
        >>> model.push_to_hub("me/breast-model", tissue="human breast cancer", patients="8")  # doctest: +SKIP
        """
        text = ModelCardText(tissue, patients=patients, licence=licence, limits=limits, citation=citation)
        return push(cast("Model", self), repo, text, private=private, revision=revision, token=token)

    @classmethod
    def from_hub(
        cls,
        repo: str,
        *,
        revision: str | None = None,
        trust_encoder: bool = False,
        token: str | None = None,
    ) -> "Model":
        """Read a model that :meth:`push_to_hub` wrote.

        Parameters
        ----------
        repo
            ``"owner/name"``.
        revision
            Branch, tag or commit; the newest by default. A commit gives the same model for ever.
        trust_encoder
            As :meth:`load` takes it.
        token
            Of Hugging Face, for a private or gated repository; that of ``hf auth login`` or HF_TOKEN by default.

        Raises
        ------
        FileNotFoundError
            There is no such repository, or it is private.
        KeyError
            It has no such revision.
        ValueError
            It is not a model of agl-sc, of a newer format, truncated or altered.
        PermissionError
            Access has to be requested.
        ConnectionError
            The hub could not be reached, and the model was not downloaded before.

        Examples
        --------
        >>> import agl_sc
        >>> model = agl_sc.Model.from_hub("me/breast-model", revision="main")  # doctest: +SKIP
        """
        found = pull(repo, revision=revision, token=token)
        return cast("type[Model]", cls).load(found, trust_encoder=trust_encoder)


def push(
    model: "Model",
    repo: str,
    text: ModelCardText,
    *,
    private: bool,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Write model and README to a repository in one commit; see :meth:`agl_sc.Model.push_to_hub`."""
    _check_repository(repo)
    model = _shareable(model, text)
    readme = readme_of(model, repo, text)
    with TemporaryDirectory(prefix="agl_sc_") as folder:
        path = Path(folder) / "model"
        model.save(path)
        files: dict[str, Path | bytes] = {CARD: path / CARD, WEIGHTS: path / WEIGHTS, README: readme.encode()}
        return _commit(repo, files, model.method, private=private, revision=revision, token=token)


def _commit(
    repo: str, files: dict[str, Path | bytes], method: str, *, private: bool, revision: str | None, token: str | None
) -> str:
    with _said(repo, revision=revision, doing="written to"):
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi(token=token, library_name="agl-sc", library_version=version("agl-sc"))
        api.create_repo(repo, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        done = api.create_commit(repo, operations, commit_message=f"Model of agl-sc, {method}", revision=revision)
    logger.info("Pushed the model to %s.", done.commit_url)
    return str(done.commit_url)


def pull(repo: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Folder in the cache with the two files of a model, checked; see :meth:`agl_sc.Model.from_hub`."""
    _check_repository(repo)
    with _said(repo, revision=revision, doing="read from"):
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=[CARD, WEIGHTS], token=token))
    _check_ours(repo, folder)
    try:
        read_model(folder)
    except (ValueError, FileNotFoundError) as error:
        said = str(error).partition(";")[0].replace(f"{folder}/", "").replace(str(folder), "it")
        msg = f"The model in {repo!r} cannot be read ({said}); name a whole one with revision=, or ask its authors to push it again."
        raise ValueError(msg) from error
    logger.info("Read the model from %s at %s.", repo, folder.name)
    return folder


def _check_repository(repo: str) -> None:
    if not isinstance(repo, str) or not _REPOSITORY.fullmatch(repo) or ".." in repo or "--" in repo:
        msg = f"repo={repo!r} is no repository of the hub; pass such as 'owner/name'."
        raise ValueError(msg)


def _check_ours(repo: str, folder: Path) -> None:
    """Refuse what no agl-sc wrote, and what a newer one did."""
    missing = [name for name in (CARD, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        msg = f"{repo!r} is not a model of agl-sc: {missing[0]} is missing; name a repository that Model.push_to_hub wrote, or another revision=."
        raise ValueError(msg)
    try:
        fields: Any = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # neither JSON nor even text: the reader of the file says so
        return
    format_ = fields.get("format") if isinstance(fields, dict) else None
    if format_ is None:
        msg = (
            f"{repo!r} is not a model of agl-sc: {CARD} has no format; name a repository that Model.push_to_hub wrote."
        )
        raise ValueError(msg)
    if isinstance(format_, int) and not isinstance(format_, bool) and format_ > FORMAT:
        msg = f"The model in {repo!r} has format {format_}, and this agl-sc {version('agl-sc')} reads up to {FORMAT}; update it with pip install --upgrade agl-sc."
        raise ValueError(msg)


def _shareable(model: "Model", text: ModelCardText) -> "Model":
    """The model as others can use it, refused where its encoder must not, or cannot, go along."""
    from dataclasses import replace

    features = model.card["features"]
    name = str(features["encoder"])
    card = card_of(name) or card_of(name.partition("@")[0])
    if model.finetuned and card is not None and card.gated:
        msg = (
            f"The model holds the weights of {card.name}, fine-tuned, and these are not to be passed on: access to them is granted "
            f"person by person, under {card.licence} ({card.source}); push a model trained with finetune=False, which holds none of them."
        )
        raise ValueError(msg)
    if model.finetuned and licence_of(name) is None and text.licence is None:
        msg = f"The model holds the weights of {name!r}, fine-tuned, whose licence is not known; pass licence= if you may pass them on."
        raise ValueError(msg)
    if card is None and name != OFFLINE and without_path(name) != name:
        msg = f"The encoder of the model is a file of this machine ({name!r}), which others do not have; push a model trained on an encoder that has a name on the hub or in timm."
        raise ValueError(msg)
    if card is None:
        return model
    return replace(model, card={**model.card, "features": {**features, "encoder": card.name}})


@contextmanager
def _said(repo: str, *, revision: str | None, doing: str) -> Iterator[None]:
    """Turn what huggingface_hub says into one sentence."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    # Without a network come errors of the HTTP library behind huggingface_hub, which depends on its release.
    unreachable: tuple[type[Exception], ...] = (HfHubHTTPError.__bases__[0], OSError, RuntimeError)
    try:
        yield
    except RevisionNotFoundError as error:
        msg = f"revision={revision!r} is none of {repo!r}; leave it out for the newest."
        raise KeyError(msg) from error
    except GatedRepoError as error:
        msg = f"{repo!r} is gated: request access at https://huggingface.co/{repo}, then run `hf auth login` or set HF_TOKEN."
        raise PermissionError(msg) from error
    except RepositoryNotFoundError as error:
        msg = f"There is no repository {repo!r} that this token may see; check its name, and run `hf auth login` or set HF_TOKEN for a private one."
        raise FileNotFoundError(msg) from error
    except unreachable as error:
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            msg = f"Hugging Face refuses the token for {repo!r}; run `hf auth login`, or set HF_TOKEN to one that may write there."
            raise PermissionError(msg) from error
        said = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        msg = f"{repo!r} could not be {doing} ({said}); check the network and HF_HUB_OFFLINE."
        raise ConnectionError(msg) from error
