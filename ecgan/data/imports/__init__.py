"""Annotations of other tools, converted to a folder of photos and label maps."""

from ecgan.data.imports.folder import Imported, import_annotations
from ecgan.data.imports.recognition import FORMATS

__all__ = ["FORMATS", "Imported", "import_annotations"]
