"""The form of the documentation: links, words, names and lengths of lines."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from flashsale import settings
from flashsale.providers import interface
from flashsale.refusals import CODES
from flashsale.settings import Settings
from flashsale.worker import mail, smtp
from test_http_schema import CONTRACT

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md")],
    key=lambda page: page.relative_to(ROOT).as_posix(),
)
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
GLOSSARY = DOCS / "glossary.md"
CODE = sorted(
    path
    for pattern in (
        "src/**/*.py",
        "sql/*.sql",
        "migrations/*.sql",
        "prove/**/*.py",
        "bench/**/*.py",
    )
    for path in ROOT.glob(pattern)
)
AROUND = [ROOT / name for name in ("Makefile", "Dockerfile", "docker-compose.yml", ".ci/run")]
AROUND += sorted((ROOT / "docker").iterdir())

WIDTH = 100
README_LINES = 220
README_HEADINGS = [
    "Architecture and API design",
    "Order and reservation lifecycle",
    "Concurrency and race conditions",
    "Trade-offs and alternatives considered",
    "Assumptions",
]
WORDS = {
    "hole": r"holes?",
    "void": r"void",
    "gap": r"gaps?",
    "forfeited": r"forfeit(?:s|ed)?",
    "recycled": r"recycl(?:e|es|ed|ing)",
    "settled": r"settled",
    "tally": r"tall(?:y|ies)",
    "stray": r"strays?",
    "now_serving": r"now_serving",
}
"""What the glossary has to define, and the forms in which a page uses it."""


def prose(page: Path) -> list[str]:
    """The lines of a page; those of code blocks are empty."""
    lines, fenced = [], False
    for line in page.read_text().splitlines():
        fence = line.lstrip().startswith("```")
        lines.append("" if fenced or fence else line)
        fenced ^= fence
    assert not fenced, f"{page}: a code block does not end"
    return lines


def anchors(page: Path) -> set[str]:
    """The anchors of the page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    result = set()
    for line in prose(page):
        if heading := re.match(r"#+ (.*)", line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).strip().lower()
            slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
            result.add(f"{slug}-{found[slug]}" if slug in found else slug)
            found[slug] = found.get(slug, 0) + 1
    return result


def links(page: Path) -> Iterator[str]:
    """The targets of the page's links and pictures."""
    text = re.sub(r"`[^`\n]*`", "", "\n".join(prose(page)))
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


def uses(page: Path) -> Iterator[tuple[str, str]]:
    """The visible text of a page in pieces, each with the target of its link, if it is one.

    Code blocks and headings are left out, and so is inline code, except for single names.
    """
    text = "\n".join("" if line.startswith("#") else line for line in prose(page))
    text = re.sub(r"`(\w+)`", r"\1", text)
    text = re.sub(r"`[^`]*`", "", text)
    at = 0
    for link in re.finditer(r"\[([^\]]*)\]\(([^)\s]+)\)", text):
        yield text[at : link.start()], ""
        yield link[1], link[2]
        at = link.end()
    yield text[at:], ""


def unlinked(page: Path) -> list[str]:
    """Words of the glossary that the page uses before it links to them."""
    missing = []
    for word, forms in WORDS.items():
        first = next((t for text, t in uses(page) if re.search(rf"(?i)\b{forms}\b", text)), None)
        if first is not None and not first.endswith(f"glossary.md#{word}"):
            missing.append(word)
    return missing


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_line_is_longer_than_100_columns_except_in_tables(page: Path) -> None:
    long = [
        n
        for n, line in enumerate(page.read_text().splitlines(), 1)
        if len(line) > WIDTH and not line.startswith("|")
    ]
    assert long == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_calls_of_verbs_show_columns_and_not_a_row_in_brackets(page: Path) -> None:
    assert re.findall(r"\bselect flashsale\.\w+\(", page.read_text()) == [], "select * from …"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_nothing_refers_to_what_readers_do_not_have(page: Path) -> None:
    assert (
        re.findall(r"DESIGN §|DESIGN section|[Tt]he issue\b|\b[Ii]ssue \d", page.read_text()) == []
    )


def test_no_comment_refers_to_what_readers_do_not_have() -> None:
    dangling = [
        path.relative_to(ROOT).as_posix()
        for path in [*CODE, *(ROOT / "tests").glob("*.py")]
        if path != Path(__file__) and re.search(r"DESIGN §|[Tt]he issue asked", path.read_text())
    ]
    assert dangling == []


@pytest.mark.parametrize("page", [p for p in PAGES if p != GLOSSARY], ids=lambda p: p.stem)
def test_a_word_of_the_glossary_is_linked_where_a_page_first_uses_it(page: Path) -> None:
    if page.name == "sql-api.md":  # the comments of the database, as they stand there
        return
    assert unlinked(page) == []


def test_a_page_that_uses_a_word_before_it_links_to_it_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("A [hole](glossary.md#hole) is a hole; `item_id << gap` is no gap of prose.\n")
    assert unlinked(page) == ["gap"]
    page.write_text("Holes come before the [hole](glossary.md#hole).\n\n```\ngap\n```\n")
    assert unlinked(page) == ["hole"]


def test_the_glossary_defines_its_words() -> None:
    assert set(WORDS) <= anchors(GLOSSARY)
    entries = re.split(r"^### ", GLOSSARY.read_text(), flags=re.MULTILINE)[1:]
    assert [e.splitlines()[0] for e in entries if len(e.split("\n", 1)[1].split()) < 5] == []


def test_the_readme_is_short_and_has_the_headings_that_a_reader_searches_for() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= README_LINES
    headings = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert [h for h in headings if h in README_HEADINGS] == README_HEADINGS


def test_every_page_of_the_documentation_is_in_its_index() -> None:
    index = DOCS / "README.md"
    listed = {(DOCS / target).resolve() for target in links(index)}
    assert [page for page in DOCS.rglob("*.md") if page not in {*listed, index}] == []


@pytest.mark.parametrize("source", [*CODE, *AROUND], ids=lambda p: p.name)
def test_every_page_that_the_code_names_exists(source: Path) -> None:
    named = re.findall(r"\bdocs/[\w/-]+\.md\b", source.read_text())
    assert [page for page in named if not (ROOT / page).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(
        r"`((?:src|sql|migrations|tests|prove|bench|docker|\.ci)/[\w./-]*\w)`", page.read_text()
    )
    named += re.findall(
        r"`((?:api|database|providers|worker|dev|simulator)/\w+\.py)`", page.read_text()
    )
    places = (ROOT, ROOT / "src" / "flashsale")
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


def test_the_types_that_a_payment_provider_needs_exist() -> None:
    pages = [DOCS / "how-to" / f"use-your-own-{it}.md" for it in ("payment-provider", "mailer")]
    named = {name for it in pages for name in re.findall(r"`([A-Z][a-z]+\w*)\b", it.read_text())}
    assert len(named) > 10
    for name in named:
        assert any(hasattr(it, name) for it in (interface, mail, smtp, settings)), name


def test_every_operation_is_in_the_table_of_calls() -> None:
    table = (DOCS / "reference" / "http-api.md").read_text()
    listed = re.findall(r"^\| `([A-Z]+) (/[^`?]*)[^`]*` \|", table, re.MULTILINE)
    assert set(listed) - {("GET", "/schema")} == {(m.upper(), path) for m, path in CONTRACT}


def test_what_is_for_staff_is_kept_from_customers_by_the_gateway() -> None:
    table = (DOCS / "reference" / "http-api.md").read_text()
    for_staff = re.findall(r"^\| `([A-Z]+ [^`?]*)[^`]*` \| staff \|", table, re.MULTILINE)
    kept = re.search(
        r"^- Keep for staff: (.*?)\.$", (ROOT / "SECURITY.md").read_text(), re.M | re.S
    )
    assert for_staff
    assert kept
    assert set(re.findall(r"`([^`]+)`", kept[1])) == set(for_staff)


def test_every_code_is_in_the_table_of_errors_with_its_status_and_meaning() -> None:
    table = (DOCS / "reference" / "errors.md").read_text()
    for code, known in CODES.items():
        row = rf"^\| `{code}` \| {known.status} \| [^|]*\| {re.escape(known.meaning)} \|$"
        assert re.search(row, table, re.MULTILINE), code


def test_every_settings_default_is_in_the_table_of_settings() -> None:
    page = (DOCS / "reference" / "settings.md").read_text()
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| `([^`]+)` \| \S", page, re.MULTILINE))
    assert {name: ast.literal_eval(default) for name, default in rows.items()} == {
        field.name.upper(): field.default for field in msgspec.structs.fields(Settings)
    }
