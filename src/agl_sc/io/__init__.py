"""Readers: everything becomes one SpatialData with one table annotating all sections."""

from agl_sc.io._anndata import from_anndata
from agl_sc.io._anndata_genes import sum_duplicate_genes
from agl_sc.io._hest import read_hest
from agl_sc.io._slide import read_slide
from agl_sc.io._st import read_st
from agl_sc.io._visium import read_visium
from agl_sc.io._wsidata import from_wsidata

__all__ = ["from_anndata", "from_wsidata", "read_hest", "read_slide", "read_st", "read_visium", "sum_duplicate_genes"]
