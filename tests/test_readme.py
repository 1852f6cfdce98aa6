"What README, index and the page of measurements say, and how their blocks are made."
import re, sys

import pytest
from playwright.sync_api import sync_playwright

import instep, readme
from conftest import CHROMIUM, ROOT

sys.path.append(str(ROOT/'tests'/'benchmarks'))
import ratios

LESSONS = readme.read_notebooks()
README = readme.readme_text()
INDEX = [instep.source(c) for c in instep.read(ROOT/'nbs'/'index.ipynb')['cells']]
MEASURED = (ROOT/'nbs'/'measured.md').read_text(encoding='utf-8')

def links(text):
    "What a Markdown text links to here, without anchors."
    return [u.partition('#')[0] for u in re.findall(r'\]\(([^)\s]+)\)', text)
            if not re.match(r'https?:|#|references\.bib', u)]

@pytest.mark.parametrize('name', ['README.md', 'nbs/index.ipynb'])
def test_links_lead_to_files(name):
    path = ROOT/name
    text = '\n'.join(INDEX) if name.endswith('.ipynb') else path.read_text(encoding='utf-8')
    found = links(text)
    assert len(found) > 20
    assert [u for u in found if not (path.parent/u).exists()] == []

def test_readme_is_short():
    "What it is, and where to go: tables of more than a screen stand elsewhere."
    tables = re.findall(r'(?:^\|.*\n)+', README, re.M)
    assert len(tables) == 3 and max(t.count('\n') for t in tables) <= 14
    assert len(README.split()) < 1700

def test_three_readers_find_their_way_at_the_top():
    first = INDEX[0]
    for reader in ('I have 30 minutes', 'I teach this', 'Only the library'):
        assert f'**{reader}.**' in first
    assert {'explorer.html', 'howto/which_start.ipynb', 'library.ipynb'} <= set(links(first))
    for anchor in re.findall('href="#([^"]+)"', first):
        heads = re.findall(r'^## (.*)$', '\n'.join(INDEX), re.M)
        assert anchor in [re.sub(r'\W+', '-', h.lower()).strip('-') for h in heads], anchor
    call = next(k for k, c in enumerate(INDEX) if 'lsuv_(model, batch)' in c)
    assert call <= 3 and 'calibrate' in ''.join(INDEX[:call + 1])

def test_each_lesson_is_in_one_part():
    found = [s for part in readme.parts(LESSONS).values() for s in part]
    assert sorted(found) == sorted(LESSONS)
    assert list(readme.parts(LESSONS))[-1] == 'Appendix' and len(readme.parts(LESSONS)) == 6

def test_what_is_a_workshop():
    assert readme.is_workshop('04a_layers') and readme.is_workshop('10c_explorer')
    assert readme.is_lesson('09c_measured') and readme.is_lesson('04_why_sqrt5')

def test_times_are_the_lessons():
    one, two = readme.minutes(LESSONS['00_start']), readme.minutes(LESSONS['04_why_sqrt5'])
    text = 'See [00](00_start.ipynb), 7 minutes, [04](04_why_sqrt5.ipynb), 9½ hours, and so on.'
    assert readme.timed(text, LESSONS) == (f'See [00](00_start.ipynb), {one} minutes, '
                                           f'[04](04_why_sqrt5.ipynb), {two} minutes, and so on.')
    two += readme.minutes(LESSONS['05_kaiming'])      # and none of the workshops between them
    text = '[a](04_why_sqrt5.ipynb) to [b](05_kaiming.ipynb), 1 minutes'
    assert readme.timed(text, LESSONS).endswith(f', {two} minutes')
    assert readme.timed('[00](00_start.ipynb) and so on', LESSONS).endswith('and so on')

@pytest.mark.site
@pytest.mark.browser
@pytest.mark.parametrize('paper', ['A4', 'Letter'])
def test_which_start_fills_two_sheets(site, paper):
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page = browser.new_page()
        page.goto((site/'howto'/'which_start.html').as_uri())
        sheets = re.findall(rb'/Type\s*/Page\b', page.pdf(format=paper))
        browser.close()
    assert len(sheets) == 2

@pytest.mark.parametrize('each, said', [(45, '90 minutes'), (60, '2 hours'), (75, '2½ hours')])
def test_hours_are_read_easily(monkeypatch, each, said):
    monkeypatch.setattr(readme, 'minutes', lambda nb: each)
    assert readme.hours(dict.fromkeys('ab')) == said

def test_tools_are_those_of_the_measurement():
    rows = [[c.strip() for c in row.split('|')[1:-1]] for row in readme.peers(LESSONS).split('\n')]
    assert rows[0][0] == 'tool' and rows[2][0].startswith('initnotes') and len(rows) == 8
    total = next(row for row in MEASURED.split('\n') if '**faults found**' in row)
    assert [r[1] for r in rows[2:]] == [c.strip() for c in total.split('|')[3:-1]]

def test_benchmarks_write_the_page(tmp_path):
    page = tmp_path/'measured.md'
    page.write_text(MEASURED, encoding='utf-8')
    for block in ('audit', 'lsuv', 'branches'):
        ratios.into_page(block, '| new |', page)
        assert f'<!-- begin {block} -->\n\n| new |\n\n<!-- end' in page.read_text(encoding='utf-8')
    assert '## Branches' in page.read_text(encoding='utf-8')
    with pytest.raises(SystemExit, match='expected one block'): ratios.into_page('x', '', page)
