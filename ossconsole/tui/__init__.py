"""The console: app, screens, widgets, styles; the only importer of Textual."""

from __future__ import annotations

import os

# Textual reads these when it is first imported. Over SSH a frame costs bytes: no animations, no pixel-wise scrolling.
os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
os.environ.setdefault("TEXTUAL_SMOOTH_SCROLL", "0")
