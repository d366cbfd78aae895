"""The README's and the examples' code runs as it is written, and prints what is shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import xroutine as xrt

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_readme_snippets_run_and_the_plan_is_the_one_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = README.read_text()
    snippets = re.findall(r"^ *```python\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    assert len(snippets) >= 3
    space: dict = {"__name__": "readme"}
    for snippet in snippets:
        lines = snippet.splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip())
        exec("\n".join(line[indent:] for line in lines), space)
    (shown,) = re.findall(r"^ *```text\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    assert capsys.readouterr().out.strip() == "\n".join(line[2:] for line in shown.splitlines())
    assert xrt.verify("power.zarr").blocks == 3
    assert xrt.verify("filtered.zarr").blocks >= 2


def test_first_shell_block_holds_the_two_commands():
    block = re.search(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)
    assert block is not None
    install, test = block.group(1).strip().splitlines()
    assert install.endswith("python -m xroutine demo")
    assert test.endswith("python -m pytest")


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_example_runs(example, tmp_path):
    command = [sys.executable, "-W", "error", str(example)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
