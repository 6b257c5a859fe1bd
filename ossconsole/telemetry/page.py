"""A page of results that can be sent: one self-contained HTML file without scripts, or Markdown.

Everything that comes from outside is escaped, and what looks like a credential is masked.
"""

from __future__ import annotations

import base64
import html
import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ossconsole.config.text import safe_text

_KEY_ID = re.compile(r"\b(?:LTAI|STS\.)[A-Za-z0-9]{8,}")
_URL_LOGIN = re.compile(r"(\w+://)[^/\s@]+@")
_SIGNED = re.compile(r"(?i)\b((?:x-oss-)?(?:signature|security-token|credential|ossaccesskeyid))=[^&\s\"']+")

_WIDTH, _HEIGHT = 360, 170  # of a chart, in its own units: text of 11 stays readable on a phone
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 8, 22
_MAX_POINTS = 240


@dataclass(frozen=True)
class Facts:
    """Labels and values."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows below a header; `note` is a line below. The first column is text, the others are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Text:
    """Paragraphs."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Band:
    """A stretch of a chart's x axis with a colour: `kind` is "standard" or "accelerated"."""

    start: float
    end: float
    kind: str


@dataclass(frozen=True)
class Chart:
    """A line over x; NaN is a gap. With `from_zero` the y axis begins at 0."""

    title: str
    x: Sequence[float]
    y: Sequence[float]
    x_title: str
    bands: Sequence[Band] = ()
    from_zero: bool = True


@dataclass(frozen=True)
class Charts:
    """Charts side by side, as far as they fit."""

    charts: Sequence[Chart]


@dataclass(frozen=True)
class Groups:
    """Groups of parts that belong together, such as those of one setup, side by side as far as they fit."""

    groups: Sequence[Sequence[Facts | Table | Text]]


@dataclass(frozen=True)
class Bars:
    """Shares from 0 to 1 as bars: a label, the share, and a note behind it."""

    rows: Sequence[tuple[str, float, str]]
    note: str = ""


@dataclass(frozen=True)
class Pictures:
    """Small JPEG images side by side, each with the lines of its caption."""

    pictures: Sequence[tuple[bytes, Sequence[str]]]


Part = Facts | Table | Text | Charts | Groups | Bars | Pictures


@dataclass(frozen=True)
class Section:
    """A heading and what is below it."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """The page: its title, the result in one sentence, its conditions, and the sections."""

    title: str
    headline: str
    conditions: Sequence[str]
    sections: list[Section] = field(default_factory=list)


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most _MAX_POINTS points: the means of equal parts; NaN where a part has no finite value."""
    count = len(x)
    if count <= _MAX_POINTS:
        return list(x), list(y)
    bounds = [number * count // _MAX_POINTS for number in range(_MAX_POINTS + 1)]
    xs, ys = [], []
    for first, after in itertools.pairwise(bounds):
        part = [value for value in y[first:after] if math.isfinite(value)]
        xs.append(x[(first + after) // 2])
        ys.append(sum(part) / len(part) if part else math.nan)
    return xs, ys


def clean(text: str) -> str:
    """`text` on one line, with credentials masked and unprintable characters escaped."""
    masked = _KEY_ID.sub("***", text)
    masked = _URL_LOGIN.sub(r"\1***@", masked)
    return safe_text(_SIGNED.sub(r"\1=***", masked))


def _escaped(text: str) -> str:
    return html.escape(clean(text), quote=True)


# HTML

_STYLE = """
:root{--text:#1b1f24;--dim:#59636e;--line:#d1d9e0;--paper:#fff;--mark:#0969da;--standard:#bc4c00;--accelerated:#1a7f37}
@media screen and (prefers-color-scheme:dark){:root{--text:#e6edf3;--dim:#9aa4ae;--line:#3d444d;--paper:#0d1117;
--mark:#58a6ff;--standard:#f0883e;--accelerated:#3fb950;color-scheme:dark}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:64rem;padding:1rem;font:16px/1.45 system-ui,sans-serif}
body{color:var(--text);background:var(--paper)}
h1{font-size:1rem;font-weight:600;color:var(--dim);margin:0 0 .3rem;overflow-wrap:anywhere}
.headline{font-size:1.5rem;font-weight:650;line-height:1.25;margin:0 0 .5rem}
.conditions{color:var(--dim);margin:0 0 1rem;font-size:.9rem;overflow-wrap:anywhere}
h2{font-size:1.05rem;border-top:1px solid var(--line);padding-top:.6rem;margin:1.1rem 0 .5rem}
p{margin:.3rem 0;overflow-wrap:anywhere}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;min-width:min(100%,24rem)}
th,td{padding:.2rem .7rem .2rem 0;text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
th:first-child,td:first-child{text-align:left}
.scroll,dl,.charts{margin:.4rem 0}
th{color:var(--dim);font-weight:600;border-bottom:1px solid var(--line)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:0;font-size:.9rem}
dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr));gap:1rem}
.groups{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,28rem),1fr));gap:.6rem 1.5rem}
.groups>div{min-width:0}.groups table{font-size:.8rem;min-width:0}.groups th,.groups td{padding-right:.45rem}
figure{margin:0}figcaption{font-size:.9rem;font-weight:600}
svg{width:100%;height:auto;display:block}
svg text{font:11px system-ui,sans-serif;fill:var(--dim)}
.axis{stroke:var(--line)}.curve{fill:none;stroke:var(--mark);stroke-width:1.6;stroke-linejoin:round}
.standard{fill:var(--standard);opacity:.18}.accelerated{fill:var(--accelerated);opacity:.18}
.key span{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 .9em;vertical-align:-.05em}
.key .standard{background:var(--standard);opacity:.35}.key .accelerated{background:var(--accelerated);opacity:.35}
.bar{display:inline-block;height:.7em;background:var(--mark);vertical-align:middle}
.track{display:inline-block;width:10rem;background:var(--line);line-height:.7}
td.bars{text-align:left}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(7rem,1fr));gap:.8rem;margin:.5rem 0}
.pictures img{width:100%;max-width:112px;height:auto;display:block}
.pictures figcaption{font-size:.75rem;font-weight:400;overflow-wrap:anywhere}
.note{color:var(--dim);font-size:.85rem}
@media (max-width:30rem){table,dl{font-size:.8rem}th,td{padding-right:.5rem;white-space:normal;overflow-wrap:normal}
.headline{font-size:1.25rem}tr{vertical-align:top}th{vertical-align:bottom}}
@page{size:A4;margin:12mm}
@media print{
html{font-size:8.5pt}body{font-size:8.5pt;padding:0;max-width:none}.headline{font-size:13pt}
h2{margin:.5rem 0 .2rem;padding-top:.3rem}.charts{grid-template-columns:repeat(3,1fr);gap:.4rem}
.groups{grid-template-columns:repeat(2,1fr);gap:.2rem .8rem;font-size:6.5pt}.groups table,.groups dl{font-size:6pt}
.groups th,.groups td{padding-right:.3rem}.groups .scroll,.groups dl,.groups p{margin:.1rem 0}
th,td{padding:.05rem .6rem .05rem 0}figure,tr,.groups>div{break-inside:avoid}h2{break-after:avoid}
.scroll{overflow:visible}}
"""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def to_html(page: Page) -> str:
    """The page as one HTML file that loads nothing: a policy in it forbids all but its own style and pictures."""
    body = "\n".join(_section(section) for section in page.sections)
    conditions = "".join(f"<p>{_escaped(line)}</p>" for line in page.conditions)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{_escaped(page.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<header>\n<h1>{_escaped(page.title)}</h1>\n<p class="headline">{_escaped(page.headline)}</p>\n'
        f'<div class="conditions">{conditions}</div>\n</header>\n{body}\n</body>\n</html>\n'
    )


def _section(section: Section) -> str:
    parts = "\n".join(_part(part) for part in section.parts)
    return f"<section>\n<h2>{_escaped(section.title)}</h2>\n{parts}\n</section>"


def _side_by_side(part: Charts | Groups | Pictures) -> str:
    if isinstance(part, Charts):
        figures = "".join(_figure(chart) for chart in part.charts)
        kinds = dict.fromkeys(band.kind for chart in part.charts for band in chart.bands)
        key = "".join(f'<span class="{_escaped(kind)}"></span>{_escaped(kind)} endpoint' for kind in kinds)
        return f'<div class="charts">{figures}</div>' + (f'<p class="note key">{key}</p>' if key else "")
    if isinstance(part, Groups):
        groups = "".join(f"<div>{''.join(_part(each) for each in group)}</div>" for group in part.groups)
        return f'<div class="groups">{groups}</div>'
    return f'<div class="pictures">{"".join(_picture(*each) for each in part.pictures)}</div>'


def _part(part: Part) -> str:
    if isinstance(part, Facts):
        rows = "".join(f"<dt>{_escaped(label)}</dt><dd>{_escaped(value)}</dd>" for label, value in part.rows)
        return f"<dl>{rows}</dl>"
    if isinstance(part, Text):
        return "".join(f"<p>{_escaped(line)}</p>" for line in part.lines)
    if isinstance(part, Charts | Groups | Pictures):
        return _side_by_side(part)
    note = f'<p class="note">{_escaped(part.note)}</p>' if part.note else ""
    if isinstance(part, Bars):
        rows = "".join(_bar(*row) for row in part.rows)
        return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>{note}'
    head = "".join(f"<th>{_escaped(title)}</th>" for title in part.header)
    body = "".join("<tr>" + "".join(f"<td>{_escaped(cell)}</td>" for cell in row) + "</tr>" for row in part.rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}'


def _bar(label: str, share: float, note: str) -> str:
    width = f"{100 * min(1.0, max(0.0, share)):.1f}%"
    bar = f'<td class="bars"><span class="track"><span class="bar" style="width:{width}"></span></span></td>'
    return f"<tr><td>{_escaped(label)}</td>{bar}<td>{_share(share)}</td><td>{_escaped(note)}</td></tr>"


def _share(share: float) -> str:
    return f"{share * 100:.1f} %"


def _picture(jpeg: bytes, caption: Sequence[str]) -> str:
    source = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    text = "<br>".join(map(_escaped, caption))
    return f'<figure><img src="{source}" alt="{_escaped(", ".join(caption))}"><figcaption>{text}</figcaption></figure>'


def _figure(chart: Chart) -> str:
    return f"<figure><figcaption>{_escaped(chart.title)}</figcaption>{_svg(chart)}</figure>"


def _svg(chart: Chart) -> str:
    """The chart as SVG: bands, three labels of the y axis, both ends of the x axis, and the curve."""
    x, y = thinned(chart.x, chart.y)
    known = [value for value in y if math.isfinite(value)]
    if not known:
        return '<p class="note">no values</p>'
    low, high = (0.0 if chart.from_zero and min(known) >= 0 else min(known)), max(known)
    if high <= low:
        high = low + (abs(low) or 1.0)
    first, last = chart.x[0], chart.x[-1]  # those of the whole line, also where its points were thinned
    span = (last - first) or 1.0
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def place_x(value: float) -> float:
        return _LEFT + (min(max(value, first), last) - first) / span * (right - _LEFT)

    def place_y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - _TOP)

    pieces = [
        f'<rect class="{_escaped(band.kind)}" x="{place_x(band.start):.1f}" y="{_TOP}" '
        f'width="{max(0.0, place_x(band.end) - place_x(band.start)):.1f}" height="{bottom - _TOP}"/>'
        for band in chart.bands
    ]
    for value in (low, (low + high) / 2, high):
        at = place_y(value)
        pieces.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        pieces.append(f'<text x="{_LEFT - 4}" y="{at + 4:.1f}" text-anchor="end">{_axis(value)}</text>')
    pieces.append(f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{_axis(first)}</text>')
    end = _escaped(f"{chart.x_title} {_axis(last)}")
    pieces.append(f'<text x="{right}" y="{_HEIGHT - 6}" text-anchor="end">{end}</text>')
    pieces.append(f'<path class="curve" d="{_curve(x, y, place_x, place_y)}"/>')
    label = _escaped(chart.title)
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(pieces)}</svg>'


def _curve(
    x: Sequence[float], y: Sequence[float], place_x: Callable[[float], float], place_y: Callable[[float], float]
) -> str:
    """The path's commands; a gap begins a new line, and a single point becomes a short one."""
    found, pen_down = [], False
    for at, value in zip(x, y, strict=True):
        if math.isfinite(value):
            found.append(f"{'L' if pen_down else 'M'}{place_x(at):.1f} {place_y(value):.1f}{'' if pen_down else 'h.1'}")
        pen_down = math.isfinite(value)
    return "".join(found)


def _axis(value: float) -> str:
    """A short number for an axis."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.1f}M"
    if size >= 1e4:
        return f"{value / 1e3:.0f}k"
    return f"{value:,.0f}" if size >= 100 or value == round(value) else f"{value:.3g}"


# Markdown

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|!~])")


def to_markdown(page: Page) -> str:
    """The page as Markdown; charts become lines with their least, mean and highest value."""
    lines = [f"# {_plain(page.title)}", "", f"**{_plain(page.headline)}**", ""]
    lines += [_plain(line) for line in page.conditions]
    for section in page.sections:
        lines += ["", f"## {_plain(section.title)}", ""]
        for part in section.parts:
            lines += [*_markdown(part), ""]
    return "\n".join(lines).rstrip() + "\n"


def _plain(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", clean(text))


def _markdown(part: Part) -> Iterable[str]:
    if isinstance(part, Facts):
        return [f"- {_plain(label)}: {_plain(value)}" for label, value in part.rows]
    if isinstance(part, Text):
        return [line for text in part.lines for line in (_plain(text), "")]
    if isinstance(part, Charts | Pictures):
        return [_range(each) for each in part.charts] if isinstance(part, Charts) else _captions(part)
    if isinstance(part, Groups):
        return [line for group in part.groups for each in group for line in (*_markdown(each), "")]
    if isinstance(part, Bars):
        return [f"- {_plain(label)}: {_share(share)} ({_plain(note)})" for label, share, note in part.rows]
    rule = [":--", *["--:"] * (len(part.header) - 1)]
    rows = [[_plain(cell) for cell in row] for row in part.rows]
    table = ["| " + " | ".join(row) + " |" for row in ([*map(_plain, part.header)], rule, *rows)]
    return [*table, "", _plain(part.note)] if part.note else table


def _captions(part: Pictures) -> list[str]:
    return [f"- {_plain(', '.join(caption))}" for _, caption in part.pictures]


def _range(chart: Chart) -> str:
    known = [value for value in chart.y if math.isfinite(value)]
    if not known:
        return f"- {_plain(chart.title)}: no values"
    middle = sum(known) / len(known)
    return f"- {_plain(chart.title)}: {_axis(min(known))} to {_axis(max(known))}, mean {_axis(middle)}"
