import numpy as np

from agl_sc.datasets._demo_tissue import demo_tissue


def test_genes_are_named_by_the_tissue_they_follow() -> None:
    table = demo_tissue(n_sections=1, n_spots_per_side=8)["table"]
    assert table.var_names.is_unique
    counts = table.X.toarray()
    scaled = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    for prefix, field in (("EPI", 0), ("LYM", 1), ("COL", 2)):
        named = [gene for gene in table.var_names if gene.startswith(prefix)]
        correlation = [
            np.corrcoef(scaled[:, table.var_names.get_loc(g)], table.obs[f"truth_field_{field}"])[0, 1] for g in named
        ]
        assert len(named) > 5
        assert min(correlation) >= 0.3


def test_the_planted_answer_has_the_same_names() -> None:
    table = demo_tissue(n_sections=1, n_spots_per_side=6)["table"]
    roles = {"target": "targets", **{name: name for name in ("informative", "distractor", "invisible", "noise")}}
    for role, key in roles.items():
        assert set(table.uns["truth"][key]) == set(table.var_names[table.var["truth_role"] == role])
