"""An interactive viewer of an output folder, in the browser of the same machine."""

from maediff.viewer.catalogue import Catalogue
from maediff.viewer.server import ViewerServer, open_viewer

__all__ = ["Catalogue", "ViewerServer", "open_viewer"]
