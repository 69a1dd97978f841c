"""The files of masks that the objects of a source name by their paths."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at import, where pyright does not see them)
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from training.data.detection.columns import KEYS
from training.data.sources import file_paths, values_of


def mask_files(source: Dataset, column: str) -> pa.ChunkedArray:
    """The paths of the masks of all objects in a column, each once; masks that lie in the rows have none."""
    objects = flat(values_of(source, column))
    fields = objects.type.names if pa.types.is_struct(objects.type) else []
    key = next((key for key in KEYS["segmentation"] if key in fields), None)
    masks = flat(pc.struct_field(objects, key)) if key is not None else pa.chunked_array([], pa.string())
    paths = file_paths(masks)
    is_text = pc.is_in(pc.utf8_slice_codeunits(paths, 0, 1), pa.array(["", "[", "{"], paths.type))
    return pa.chunked_array([pc.unique(paths.filter(pc.invert(is_text)))])


def flat(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values in lists, one after the other."""
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        values = pc.list_flatten(values)
    return values
