"""Every page opens with the question it answers, is on a shelf, and links only what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_opens_with_the_question_that_it_answers(page):
    _, title, rest = re.split(r"^(# .+)$", page.read_text(encoding="utf-8"), maxsplit=1, flags=re.MULTILINE)
    (opening, *_) = rest.strip().split("\n\n")
    assert "?" in opening, f"{title}: {opening[:80]}"
    assert not opening.startswith(("#", "|", "```"))


def test_every_page_is_on_one_shelf():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    shelved = re.findall(r"^\| \[[^]]+\]\((\w+\.md)\) \| .+\? \|$", index, flags=re.MULTILINE)
    assert sorted(shelved) == [page.name for page in PAGES if page.name != "index.md"]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_what_a_page_links_in_the_repository_is_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
