"""Pictures of results; the only place where matplotlib is imported, and without its global state."""

from .canvas import save_figure
from .composition import composition_map
from .defect import defect_graph
from .movie import animation_frames, save_animation, track_picture
from .overlay import overlay
from .statistics import statistics_figure
from .strips import event_strips
from .timeline import timeline

__all__ = [
    "animation_frames",
    "composition_map",
    "defect_graph",
    "event_strips",
    "overlay",
    "save_animation",
    "save_figure",
    "statistics_figure",
    "timeline",
    "track_picture",
]
