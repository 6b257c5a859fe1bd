"""Pictures of a report as a browser shows it: at desktop and phone width, light and dark, and as it prints.

    python -m tests.benchmarks.report_pictures REPORT.html --out DIR

Needs chromium (`apt-get install chromium`); the test command checks reports without a browser.
"""

from __future__ import annotations

import argparse
import itertools
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ossconsole.cli.output import say

WIDTHS = {"desktop": 1280, "phone": 390}
DARK = {"": [], "-dark": ["--blink-settings=preferredColorScheme=0"]}
_HEIGHT = 2400
_PAGE = re.compile(rb"/Type\s*/Page\b")


def main() -> None:
    """The command; fails when the browser does, or when it does not exist."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    if not options.report.is_file():
        sys.exit(f"{options.report} does not exist.")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("There is no chromium on this machine: apt-get install chromium.")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        common = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        page = options.report.resolve().as_uri()
        for (name, width), (suffix, scheme) in itertools.product(WIDTHS.items(), DARK.items()):
            picture = options.out / f"{options.report.stem}-{name}{suffix}.png"
            size = [f"--window-size={width},{_HEIGHT}", "--hide-scrollbars", f"--screenshot={picture}"]
            subprocess.run([*common, *scheme, *size, page], check=True, capture_output=True, timeout=120)
            say(picture)
        printed = options.out / f"{options.report.stem}.pdf"
        subprocess.run([*common, f"--print-to-pdf={printed}", page], check=True, capture_output=True, timeout=120)
        say(f"{printed}: {len(_PAGE.findall(printed.read_bytes()))} pages")


if __name__ == "__main__":
    main()
