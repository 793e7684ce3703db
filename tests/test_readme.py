"""What the README shows runs as written."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_example_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path))
    example = blocks("python")[0]
    assert "fxprune.optimize(" in example
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "slim.onnx").stat().st_size > 100_000


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)]+)\)", README.read_text("utf-8")))
def test_what_the_readme_links_to_exists(path):
    assert (README.parent / path).is_file()


def test_the_make_targets_it_names_exist():
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|`)make (\w+)", README.read_text("utf-8"), re.MULTILINE))
    assert {"demo", "test", "check"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
