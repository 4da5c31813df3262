"""``agl-sc train``."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from agl_sc.cli._address import (
    BatchSize,
    CoordinateSystem,
    Device,
    ImageKey,
    ImageMpp,
    KeyAdded,
    Layer,
    ShapesKey,
    TableKey,
    TileMpp,
    TilePx,
    elements,
    tile_mpp,
)
from agl_sc.cli._frame import Force, Result, say
from agl_sc.cli._store import Destination, Seed, Store, free_destination, open_store, written

if TYPE_CHECKING:
    from agl_sc._sdata.study import Study
    from agl_sc.model import Model
    from agl_sc.tl import TrainConfig

TrainSettings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Field of agl_sc.tl.TrainConfig; repeat for several."),
]
Targets = Annotated[
    list[str] | None, typer.Option(help="Target gene, repeat for several; or how many of highest variance.")
]
_GRADIENT = "gradient."
"""Before the names of settings of the gradient search."""
PriorScore = Annotated[str | None, typer.Option(help="Prior ranks of auxiliary genes, as pp.rank_auxiliary says.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Folder to continue from after an interrupt.")]
By = Annotated[
    str | None,
    typer.Option(help="Divide by section, patient, block or spot; as the store says, or by section, without."),
]
Units = Annotated[
    list[str] | None, typer.Option(help="Sections of this set, the option repeated for several; or a fraction.")
]


def train(  # noqa: PLR0913 -- an entry point
    context: typer.Context,
    store: Store,
    *,
    output: Annotated[Path, typer.Option(help="Folder for the model.", show_default=False)],
    write: Annotated[Path | None, typer.Option(help="Store for the sections with all slots.")] = None,
    force: Force = False,
    method: Annotated[str, typer.Option(help="pgl, agl, dkgsb, or a weighting to compare with.")] = "dkgsb",
    preset: Annotated[str | None, typer.Option(help="Published variant: paper, released or warmstart.")] = None,
    settings: TrainSettings = None,
    finetune: Annotated[bool, typer.Option("--finetune", help="Train the whole encoder too.")] = False,
    checkpoint: Checkpoint = None,
    init: Annotated[
        Path | None, typer.Option(help="Folder of a model to go on from, with its genes and tiles.")
    ] = None,
    write_to: Annotated[
        str,
        typer.Option(help="Predictions as layer, as a table of their own, or auto: as a table where a layer is large."),
    ] = "auto",
    by: By = None,
    test: Units = None,
    validation: Units = None,
    block_um: Annotated[float | None, typer.Option(help="Side of a block in microns; 500 without.")] = None,
    buffer_um: Annotated[
        float | None, typer.Option(help="Distance that sets of blocks keep, in microns; 150 without.")
    ] = None,
    targets: Targets = None,
    score: PriorScore = None,
    encoder: Annotated[str | None, typer.Option(help="Encoder, see agl-sc encoders.")] = None,
    tile_px: TilePx = None,
    mpp: TileMpp = None,
    wider: Annotated[
        list[float] | None,
        typer.Option("--context", help="Wider field of view, in sides of a tile; repeat for several, 1 for none."),
    ] = None,
    neighbors: Annotated[int | None, typer.Option(help="Rings of neighbouring spots whose features are added.")] = None,
    orientations: Annotated[
        int | None, typer.Option(help="Ways of laying a tile that features are averaged over: 1, 2, 4 or 8.")
    ] = None,
    maps: Annotated[
        str | None, typer.Option(help="Fields of view that are means over maps of the tissue: none, wider or all.")
    ] = None,
    table_key: TableKey = None,
    image_key: ImageKey = None,
    shapes_key: ShapesKey = None,
    coordinate_system: CoordinateSystem = None,
    image_mpp: ImageMpp = None,
    device: Device = None,
    batch_size: BatchSize = 32,
    layer: Layer = None,
    key_added: KeyAdded = "agl",
    seed: Seed = 0,
) -> Result:
    """Learn to predict expression from H&E, and save the model.

    What the store lacks is prepared: split, target genes, prior ranks and features of the tiles. With --by, --test,
    --validation, --block-um or --buffer-um the split is made anew. The store itself is not changed.

    For example:
      agl-sc train STORE.zarr --by section --test C6 --validation C5 --output model
      agl-sc train STORE.zarr --method agl --set batch_size=64 --set max_epochs=20 --output model --write RESULT.zarr
      agl-sc train --config model/agl-sc.toml --output another_model
      agl-sc train OTHER.zarr --init model --output model_of_both
    """
    from agl_sc import Model, tl
    from agl_sc._sdata.study import Address, Study

    places = [
        free_destination(output, force=force, folder=True),
        *([free_destination(write, force=force)] if write else []),
    ]
    config = train_config(settings or [], preset)
    split = given(by=by, test=_units(test), validation=_units(validation), block_um=block_um, buffer_um=buffer_um)
    tiles = given(
        encoder=encoder, tile_px=tile_px, mpp=tile_mpp(mpp) if mpp else None, neighbors=neighbors,
        context=tuple(factor for factor in wider if factor != 1) if wider else None,
        orientations=orientations, maps=maps,
    )  # fmt: skip
    genes = given(genes=number_or_names(targets), score=score)
    where = elements(table_key, image_key, shapes_key, coordinate_system=coordinate_system, image_mpp=image_mpp)
    encoding: dict[str, Any] = {"device": device, "batch_size": batch_size}
    start = None if init is None else Model.load(init)
    if start is not None and (genes or tiles):
        msg = f"--init {init} brings its own genes and tiles, and {', '.join([*genes, *tiles])} is asked for too; leave that out, or train without --init."
        raise ValueError(msg)
    say(f"Reading {store}")
    sdata = open_store(store)
    say("Preparing")
    study = Study.of(sdata, Address(**where, layer=layer), key_added)
    if start is None:
        _prepare(study, (split, genes, tiles), encoding=encoding, seed=seed)
    else:
        _divide(study, split, seed=seed)
    say(f"Training {method}")
    model = tl.train(
        sdata,
        method=method,  # type: ignore[arg-type]  # refuses an unknown one
        finetune=finetune,
        config=config,
        checkpoint=checkpoint,
        init=start,
        write_to=write_to,  # type: ignore[arg-type]  # refuses an unknown one
        layer=layer,
        key_added=key_added,
        seed=seed,
        **encoding,
        **where,
    )
    say(f"Writing {', '.join(str(place.path) for place in places)}")
    with written(context, *places) as fresh:
        model.save(fresh[0])
        for path in fresh[1:]:
            sdata.write(path)
    return _result(model, places)


def train_config(settings: list[str], preset: str | None) -> "TrainConfig":
    """Settings of training from a preset and ``NAME=VALUE``.

    Raises
    ------
    ValueError
        There is no such setting or preset, or the value is of another kind.
    """
    from agl_sc.tl import TrainConfig

    values = changed_settings(settings)
    if preset is not None:
        return TrainConfig.preset(preset, **values)  # type: ignore[arg-type]  # refuses an unknown one
    return TrainConfig.from_plain({**values.pop("gradient", {}), **values})


def changed_settings(settings: list[str]) -> dict[str, Any]:
    """What ``NAME=VALUE`` sets, as :meth:`agl_sc.tl.TrainConfig.preset` takes changes.

    Raises
    ------
    ValueError
        There is no such setting, or the value is of another kind.
    """
    from agl_sc._sdata.table import near_matches
    from agl_sc.tl import GradientSearch, TrainConfig

    own, gradient = get_type_hints(TrainConfig), get_type_hints(GradientSearch)
    del own["gradient"]
    kinds = {**own, **{f"{_GRADIENT}{name}": kind for name, kind in gradient.items()}}
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if name in gradient:
            say(f"--set {name}=... is now --set {_GRADIENT}{name}=...; the old form goes in the next version.")
            name = f"{_GRADIENT}{name}"
        if not equals or name not in kinds:
            msg = f"--set {setting} is not NAME=VALUE of a setting; the settings are {', '.join(kinds)}{near_matches([name], kinds)}."
            raise ValueError(msg)
        value = _setting(name, text, kinds[name])
        if name.startswith(_GRADIENT):
            values.setdefault("gradient", {})[name.removeprefix(_GRADIENT)] = value
        else:
            values[name] = value
    return values


def _setting(name: str, text: str, kind: Any) -> Any:
    legal = get_args(kind) or (kind,)
    if any(isinstance(each, str) for each in legal):
        return text
    named = {"true": True, "false": False} if bool in legal else {"none": None} if type(None) in legal else {}
    if text.lower() in named:
        return named[text.lower()]
    number = next((each for each in (int, float) if each in legal), None)
    try:
        if number is not None:
            return number(text)
    except ValueError:
        pass
    what = " or ".join(
        [*named, *({int: "a whole number", float: "a number"}[each] for each in (int, float) if each in legal)]
    )
    msg = f"--set {name}={text} is not {what}."
    raise ValueError(msg)


def given(**options: Any) -> dict[str, Any]:
    """The options that have a value."""
    return {name: value for name, value in options.items() if value not in (None, [])}


def _units(values: list[str] | None) -> float | list[str] | None:
    """A fraction, or names of sections."""
    if values and len(values) == 1 and re.fullmatch(r"0?\.\d+|0", values[0]):
        return float(values[0])
    return values or None


def number_or_names(values: list[str] | None) -> int | list[str] | None:
    """How many genes, or which."""
    if values and len(values) == 1 and values[0].isdecimal():
        return int(values[0])
    return values or None


def _divide(study: "Study", split: dict[str, Any], *, seed: int) -> None:
    """The split that options ask for, if they do; one is made where there is none."""
    from agl_sc.pp._splits.drawn import SplitRequest
    from agl_sc.pp._splits.split import split_study
    from agl_sc.tl._model.train import split_if_missing

    if split:
        split_study(study, SplitRequest(**split, seed=seed))
    split_if_missing(study, seed=seed)


def _prepare(
    study: "Study",
    options: tuple[dict[str, Any], dict[str, Any], dict[str, Any]],
    *,
    encoding: dict[str, Any],
    seed: int,
) -> None:
    """What the options for split, genes and tiles ask for; the rest is left to training."""
    from agl_sc.pp._features.context import WIDER, Views
    from agl_sc.pp._features.embed import FeatureRequest, embed_study
    from agl_sc.pp._genes.targets_and_ranks import choose_targets, rank_study
    from agl_sc.tl._model.train import N_TARGETS

    split, genes, tiles = options
    _divide(study, split, seed=seed)
    if split or genes:  # both are fitted on training spots
        choose_targets(study, genes=genes.get("genes", min(N_TARGETS, study.table.n_vars)))
        if study.keys.prior_rank in study.table.var:
            del study.table.var[study.keys.prior_rank]
        if genes.get("score", "predictability") != "predictability":  # by features, training ranks when it has them
            rank_study(study, score=genes["score"], seed=seed)
    if tiles:
        wider = {"context": WIDER, "neighbors": 0, "orientations": 2, "stages": True, "maps": None}
        views = Views(**{name: tiles.pop(name, usual) for name, usual in wider.items()})
        embed_study(study, FeatureRequest(**tiles, views=views, **encoding))


def _result(model: "Model", places: list[Destination]) -> Result:
    paths = [str(place.path) for place in places]
    n_selected = int(model.selected[model.n_targets :].sum())
    values = {
        "model": paths[0],
        "store": paths[1] if len(paths) > 1 else None,
        "method": model.method,
        "n_targets": model.n_targets,
        "n_auxiliary": len(model.genes) - model.n_targets,
        "n_selected": n_selected,
        "cutoff": model.cutoff,
        "best_epoch": model.best_epoch,
        "validation_pearson": float(model.history["validation_pearson"].max()),
    }
    text = (
        f"{model.method}: {model.n_targets} target genes, {n_selected} of {values['n_auxiliary']} auxiliary genes, "
        f"validation Pearson {values['validation_pearson']:.3f} at epoch {model.best_epoch}.\n" + "\n".join(paths)
    )
    return Result(values, text)
