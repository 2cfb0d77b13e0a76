"""Pictures of results; the only place where matplotlib is imported, and without its global state."""

from .canvas import save_figure
from .defect import defect_graph
from .overlay import overlay

__all__ = ["defect_graph", "overlay", "save_figure"]
