"""``agl-sc encoders``."""

from agl_sc.cli._frame import Result


def encoders() -> Result:
    """List the encoders that are taken by name, with the licence of their weights and how to get them.

    Any timm name, any hf-hub: name of a timm model and local weights are taken too. Access to a gated encoder has to be
    requested from its authors.

    For example:
      agl-sc encoders
      agl-sc encoders --json
    """
    from agl_sc.core.encoders.load import OFFLINE
    from agl_sc.pp import encoders as table_of

    table = table_of()
    shown = table[["input_px", "n_features", "maps", "licence", "gated"]].replace({True: "yes", False: "no"})
    said = (
        f"{OFFLINE} (ImageNet, Apache-2.0) needs no network and is the default. It passes over the tissue once, as other networks "
        "do that see nothing far away; those listed go by tiles, or with --maps wider or all by what the column says."
    )
    text = f"{shown.to_string()}\n\n{said}"
    return Result({"offline": OFFLINE, "encoders": table.reset_index().to_dict(orient="records")}, text)
