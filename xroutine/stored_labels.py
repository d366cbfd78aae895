"""Writing labels and other small variables into the root of a store."""

from __future__ import annotations

import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec

from xroutine.errors import (
    StoreError,
)
from xroutine.ledger import GROUP
from xroutine.store import MARK


def check_storable(labels: xr.Dataset) -> None:
    """Raise for labels that cannot be stored under their name or with their values."""
    for name, coord in labels.variables.items():
        if " " in str(name) or "/" in str(name) or name == GROUP:
            raise StoreError(
                f"labels {name!r}: a name with a space or a slash, or 'ledger', cannot be stored, rename it"
            )
        if coord.dtype.kind == "S":
            raise StoreError(f"labels {name!r} are bytes: decode them with .astype(str)")
        if coord.dtype == object and not all(isinstance(value, str) for value in coord.values.flat):
            kinds = sorted({type(value).__name__ for value in coord.values.flat})
            raise StoreError(f"labels {name!r} hold objects ({', '.join(kinds)}): make them all strings or all numbers")


def write_labels(store: Store, labels: xr.Dataset, mark: str) -> None:
    """Write labels and other small variables into the root of a store, in place of those that are there.

    Each is one chunk, with a checksum.
    """
    group = zarr.open_group(store, mode="r+", use_consolidated=False)
    for name in set(labels.variables) & set(group.array_keys()):
        del group[str(name)]
    # xarray replaces the root's attributes; the mark has to be among them at every moment.
    plain = labels.drop_encoding().drop_attrs(deep=False).assign_attrs({MARK: mark})
    # Zarr v3 has a specified dtype for strings of any length, none yet for NumPy's fixed-length ones.
    fixed = {name: variable for name, variable in plain.variables.items() if variable.dtype.kind == "U"}
    plain = plain.assign({name: variable.astype(object) for name, variable in fixed.items()})
    codecs = {"compressors": [ZstdCodec(checksum=True)]}
    encoding = {
        name: {**codecs, **({"chunks": variable.shape} if variable.ndim and variable.size else {})}
        for name, variable in plain.variables.items()
    }
    plain.to_zarr(store, mode="a", consolidated=False, encoding=encoding, zarr_format=3, write_empty_chunks=True)
