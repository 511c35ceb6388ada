"""The API reference, as its one command makes it, and the file that says how to cite the project."""

import os
import re
import runpy
import subprocess
import sys
import tomllib
import warnings

import pytest
import yaml

import reptile_distil
from tests.helpers.paths import ROOT

DOCS = ROOT / ".ci" / "docs.py"


def run_docs(*arguments):
    # pdoc runs what is imported for types alone, pictures' among them, which the other tests do without.
    variables = {name: value for name, value in os.environ.items() if name != "WITHOUT_MATPLOTLIB"}
    command = [sys.executable, str(DOCS), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=variables)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    pytest.importorskip("pdoc")
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("api")
    done = run_docs(str(folder))
    assert done.returncode == 0, done.stderr
    return {str(page.relative_to(folder)): page.read_text(encoding="utf-8") for page in folder.rglob("*.html")}


def test_every_public_name_is_in_the_api_reference_with_its_docstring(pages):
    page = pages["reptile_distil.html"]
    for name in reptile_distil.__all__:
        section = page.partition(f'<section id="{name}">')[2]
        assert '<div class="docstring">' in section.partition("</section>")[0], name


def test_arguments_are_a_list_and_every_module_that_the_library_page_speaks_of_has_a_page(pages):
    page = pages["reptile_distil.html"]
    assert "<li><strong>student_optimizer:</strong>" in page.partition('<section id="ReptileDistiller">')[2]
    text = (ROOT / "reptile_distil" / "README.md").read_text(encoding="utf-8")
    used = re.findall(r"^from (reptile_distil\.[\w.]+) import", text, re.M)
    assert used
    assert {name.replace(".", "/") + ".html" for name in used} <= set(pages)


def test_a_warning_ends_the_api_reference(tmp_path, monkeypatch):
    pdoc = pytest.importorskip("pdoc")
    monkeypatch.setattr(reptile_distil, "__all__", ["load_config"])
    monkeypatch.setattr("importlib.import_module", lambda name: None)
    monkeypatch.setattr(pdoc, "pdoc", lambda *modules, output_directory: warnings.warn("no such type", stacklevel=1))
    main = runpy.run_path(str(DOCS))["main"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with pytest.raises(UserWarning, match="no such type"):
            main(tmp_path)


def test_the_citation_file_has_what_its_format_requires():
    """By the schema of the Citation File Format 1.2.0: its required keys, and those of the types that are used."""
    cited = yaml.safe_load((ROOT / ".github" / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] in ("software", "dataset")
    known = {"abstract", "keywords", "license", "preferred-citation", "type", "version"}
    assert set(cited) <= {"cff-version", "message", "title", "authors", *known}
    for author in cited["authors"]:
        assert "name" in author or {"family-names", "given-names"} <= set(author)
    paper = cited["preferred-citation"]
    assert {"type", "title", "authors"} <= set(paper)
    assert paper["type"] == "conference-paper"
    assert all(isinstance(paper["conference"][key], str) for key in ("name",))


def test_versions_and_citations_agree():
    cited = yaml.safe_load((ROOT / ".github" / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert str(cited["version"]) == project["version"] == reptile_distil.__version__
    assert cited["license"] == project["license"]
    assert readme.rpartition("\n## ")[2].startswith(f"What is new\n\n**{project['version']}**")
    paper = cited["preferred-citation"]
    assert f"title = {{{paper['title']}}}" in readme
    names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert f"author = {{{names}}}" in readme
