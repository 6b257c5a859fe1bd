"""The console's own themes. In every theme `secondary` is the standard endpoint, `accent` the accelerated one."""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="console-dark",
    primary="#7aa2f7",
    secondary="#6cb6ff",
    accent="#ff9e64",
    success="#8fd19e",
    warning="#e6c35c",
    error="#f47067",
    foreground="#d3dae3",
    background="#10151b",
    surface="#161d25",
    panel="#1e2731",
    dark=True,
    variables={"rule": "#33404d", "dim": "#8493a3", "footer-key-foreground": "#7aa2f7"},
)

LIGHT = Theme(
    name="console-light",
    primary="#3559c7",
    secondary="#0b63c5",
    accent="#b04a00",
    success="#1a7f37",
    warning="#8a6100",
    error="#c02a32",
    foreground="#1f2630",
    background="#fbfcfd",
    surface="#f1f4f7",
    panel="#e4e9ee",
    dark=False,
    variables={"rule": "#c3ccd5", "dim": "#5c6875", "footer-key-foreground": "#3559c7"},
)

OWN = (DARK, LIGHT)

ROTATION = ("console-dark", "console-light", "ansi-dark", "ansi-light")
"""What the theme key steps through; every other theme of Textual is in the command palette."""
