"""Our own Python processes import nothing from the current folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ossconsole.config.spawning import module_command


def test_a_module_runs_without_the_files_of_the_current_folder(tmp_path: Path) -> None:
    for name in ("argparse", "runpy", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current folder')")
    (tmp_path / "data").write_text('{"a": 1}')
    command = module_command("json.tool", "--compact", "data")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, '{"a":1}\n', "")
