"""One function per figure: each takes a DataFrame and returns a matplotlib figure."""

from driftsched_lib.figures.kinds import caption
from driftsched_lib.figures.paper import *
from driftsched_lib.figures.studies import *
from driftsched_lib.figures.style import use_style
