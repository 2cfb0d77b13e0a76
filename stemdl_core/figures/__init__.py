"""Pictures of results; the only place where matplotlib is imported, and without its global state."""

from .canvas import save_figure
from .defect import defect_graph
from .movie import animation_frames, save_animation, timeline, track_picture
from .overlay import overlay

__all__ = [
    "animation_frames",
    "defect_graph",
    "overlay",
    "save_animation",
    "save_figure",
    "timeline",
    "track_picture",
]
