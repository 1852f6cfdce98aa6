"The site says what the notebooks say, its links lead somewhere, and planted faults are found."
import json, os, re, shutil
from urllib.parse import unquote

import pytest, yaml
from bs4 import BeautifulSoup

import readme, website
from conftest import ROOT
from instep import read, source
from notebooks import SVG, outputs

# The warning is one that myst-parser gets from Sphinx.
pytestmark = [pytest.mark.site, pytest.mark.filterwarnings('ignore::PendingDeprecationWarning')]

LESSONS = readme.read_notebooks()
PAGES = {**LESSONS, **readme.read_pages()}
PAGES.pop('library')     # whose cells stand on the pages of tests/test_library.py
BIB = website.bibliography((ROOT/'nbs'/'references.bib').read_text(encoding='utf-8'))

def soup(path):
    return BeautifulSoup(path.read_text(encoding='utf-8'), 'html.parser')

def words(text): return ' '.join(text.split())

# ---- what can be wrong with any page ---------------------------------------------------------

def problems(folder):
    "What is wrong with the pages below `folder`, each with its page."
    pages = {p.resolve(): soup(p) for p in sorted(folder.rglob('*.html'))}
    anchors = {p: {t['id'] for t in s.find_all(id=True)} for p, s in pages.items()}
    for path, s in pages.items():
        say = path.relative_to(folder.resolve()).as_posix() + ': '
        for tag, attribute in (('a', 'href'), ('link', 'href'), ('script', 'src'), ('img', 'src')):
            for t in s.find_all(tag, **{attribute: True}):
                url = t[attribute]
                if re.match('https?:|//', url):
                    if tag != 'a': yield say + f'loads {url} from elsewhere'
                    continue
                file, _, anchor = unquote(url).partition('#')
                target = (path.parent/file.partition('?')[0]).resolve() if file else path
                if target.is_dir(): target /= 'index.html'
                if url.startswith('data:'): continue
                if not target.exists(): yield say + f'{url} leads nowhere'
                elif '=' in anchor: continue        # a state of the explorer
                elif anchor and target in anchors and anchor not in anchors[target]:
                    yield say + f'{url}: no such anchor'
        for img in s.find_all('img'):
            if len(img.get('alt', '')) < 20 or img['alt'].endswith('.png'):
                yield say + f"{img['src']} has no text that says what it shows: {img.get('alt')!r}"
        article = s.find('article')
        levels = [int(h.name[1]) for h in article.find_all(re.compile('^h[1-6]$'))]
        if levels[:1] not in ([1], []) or any(b > a + 1 for a, b in zip(levels, levels[1:])):
            yield say + f'headings skip a level: {levels}'
        for t in article.find_all(string=re.compile(r'#\|')):
            yield say + f'a directive is shown: {words(t)[:60]}'
        for t in article.find_all(string=re.compile(r'\$|\\[a-z]{3,}')):
            if not t.find_parents(['pre', 'code', 'script']) and not t.find_parent(class_='math'):
                yield say + f'a formula is not rendered: {words(t)[:60]}'

def test_nothing_is_wrong(site): assert list(problems(site)) == []

@pytest.fixture
def spoilt(site, tmp_path):
    "A function that changes a page in a copy of the site, and says what is then wrong with it."
    def spoil(page, old, new, count=1):
        for f in ('references.html', 'glossary.html', 'index.html', '02_data.html'):
            shutil.copy(site/f, tmp_path)
        for d in ('_static', '_images', '_downloads', 'api'):
            shutil.copytree(site/d, tmp_path/d, dirs_exist_ok=True)
        before = {p.split(': ', 1)[1] for p in problems(tmp_path)}
        text = (tmp_path/page).read_text(encoding='utf-8')
        assert re.search(old, text), old
        (tmp_path/page).write_text(re.sub(old, new, text, count=count), encoding='utf-8')
        return [p for p in problems(tmp_path) if p.split(': ', 1)[1] not in before]
    return spoil

@pytest.mark.parametrize(
    'old, new, said',
    [(r'<img alt="[^"]*"', '<img alt=""', 'no text that says'),
     (r'<img alt="[^"]*"', '<img', 'no text that says'),
     (r'<img alt="[^"]*"', '<img alt="_images/a.png"', 'no text that says'),
     (r'href="references.html#yadav2019"', 'href="references.html#yadav1919"', 'no such anchor'),
     (r'href="glossary.html"', 'href="glosary.html"', 'leads nowhere'),
     (r'<h2>', '<h4>x</h4><h2>', 'skip a level'),
     (r'<article[^>]*>', r'\g<0><pre>#| export</pre>', 'directive'),
     (r'<article[^>]*>', r'\g<0><p>so $x^2$ is</p>', 'formula'),
     (r'<article[^>]*>', r'\g<0><p>so \\sqrt5 is</p>', 'formula'),
     (r'<head>', '<head><script src="https://cdn.invalid/x.js"></script>', 'from elsewhere')])
def test_planted_faults_of_a_page_are_found(spoilt, old, new, said):
    found = spoilt('02_data.html', old, new)
    assert found and all(said in p and p.startswith('02_data.html') for p in found), found

# ---- lessons ---------------------------------------------------------------------------------

@pytest.mark.parametrize('stem', PAGES)
def test_visible_code_is_on_the_page_and_hidden_code_is_not(site, stem):
    shown = '\n'.join(words(p.get_text()) for p in soup(site/f'{stem}.html').find_all('pre'))
    for i, c in enumerate(PAGES[stem]['cells']):
        if c['cell_type'] != 'code': continue
        code = '\n'.join(l for l in source(c).splitlines() if not l.startswith('#|'))
        hidden = {'hide', 'default_exp'} & website.directives(c).keys() and code.strip()
        assert (words(code) in shown) != bool(hidden), (stem, i)

@pytest.mark.parametrize('stem', PAGES)
def test_every_figure_says_what_it_shows(stem):
    for i, o in outputs(PAGES[stem]):
        if {'image/png', SVG} & o.get('data', {}).keys():
            alt = website.directives(PAGES[stem]['cells'][i]).get('fig-alt') or ''
            assert len(alt) > 40, f'{stem}, cell {i}: a figure without `#| fig-alt: …`'

@pytest.mark.parametrize('stem', [s for s in LESSONS if readme.is_lesson(s)])
def test_exercises_are_marked_solved_asserted_and_folded(site, stem):
    cells = LESSONS[stem]['cells']
    prose = '\n'.join(source(c) for c in cells if c['cell_type'] == 'markdown')
    order = re.findall('^## (What held|Exercises|Where to read on|Solutions)$', prose, re.M)
    assert order == ['What held', 'Exercises', 'Where to read on', 'Solutions']
    at = next(i for i, c in enumerate(cells) if source(c).startswith('## Solutions'))
    exercises = prose.partition('\n## Exercises\n')[2].partition('\n## Where to read on')[0]
    marks = re.findall(r'^\*\*(\d)\.\*\* (●○○|●●○|●●●) ', exercises, re.M)
    assert [int(k) for k, _ in marks] == [*range(1, len(marks) + 1)] and 2 <= len(marks) <= 4
    solutions = {}
    for c in cells[at:]:
        if c['cell_type'] == 'markdown':
            number = (website.SOLUTION.findall(source(c)) or [None])[-1]
        elif number: solutions[number] = solutions.get(number, '') + source(c)
    assert list(solutions) == [k for k, _ in marks]
    assert all(re.search(r'\bassert\b|\btest_\w+\(|\bexpect_fail\(|\.check\(', s)
               for s in solutions.values()), 'a solution that nothing asserts'
    page = soup(site/f'{stem}.html')
    folded = page.find_all('details', class_='solution')
    assert [d.summary.get_text() for d in folded] == [f'Solution {k}' for k in solutions]
    assert all(d.find('pre') for d in folded)
    assert not any(d.has_attr('open') for d in page.find_all('details'))

@pytest.mark.parametrize('stem', LESSONS)
def test_number_question_time_and_download(site, stem):
    page = soup(site/f'{stem}.html').find('article')
    assert page.h1.get_text().startswith(f"{stem.partition('_')[0]} · ")
    assert words(page.blockquote.get_text()) == words(readme.question(LESSONS[stem]))
    links = page.find(class_='lesson-links')
    assert f'about {readme.minutes(LESSONS[stem])} minutes' in words(links.get_text())
    notebook = links.find('a', download=True)['href']
    assert (site/notebook).read_bytes() == (ROOT/'nbs'/f'{stem}.ipynb').read_bytes()

@pytest.mark.parametrize('stem', LESSONS)
def test_ledger_is_a_folded_table(site, stem):
    rows = [words(tr.get_text(' ')) for tr in soup(site/f'{stem}.html').find_all('tr')]
    for row in (r for l in readme.ledgers(LESSONS[stem]) for r in l['rows']):
        assert any(words(row['what']).replace('\\', '')[:12] in r for r in rows), row['what']

    found = [d.summary.get_text() for d in soup(site/f'{stem}.html').select('details.ledger')]
    seen = [c for c in LESSONS[stem]['cells'] if 'hide' not in website.directives(c)]
    counts = [len(l['rows']) for l in readme.ledgers(dict(cells=seen))]
    assert found == [f'{n} checks, all inside' if n > 1 else '1 check, inside' for n in counts]

def test_order_of_reading(site):
    at, seen = 'index', []
    while at in ('index', *LESSONS):
        seen.append(at)
        at = soup(site/f'{at}.html').find('a', class_='next-page')['href'].removesuffix('.html')
    assert seen == ['index', *LESSONS]

def row(**changed):
    return dict(what='a gain', predicted=1.5, measured=1.5, tolerance='±0.1') | changed

@pytest.mark.parametrize('rows, said', [
    ([row()], '1 check, inside'), ([row(), row()], '2 checks, all inside'),
    ([row(), row(what='a & b', measured=1.61)], '2 checks, 1 outside: a &amp; b'),
    ([row(tolerance='±0.1 (5 se)', measured=1.39)], '1 check, 1 outside: a gain'),
    ([row(tolerance='1.6 … 2.5')], '1 check, 1 outside: a gain'),
    ([row(tolerance='1.5 … 2.5')], '1 check, inside'),
    ([row(predicted='1.51 … 2', tolerance='range of 400 draws; median')],
     '1 check, 1 outside: a gain'),
    ([row(tolerance='±0')], '1 check, inside'),
    ([row(tolerance='±0', measured=1.500001)], '1 check, 1 outside: a gain'),
    ([row(measured=float('nan'))], '1 check, 1 outside: a gain')])
def test_summary_of_a_ledger(rows, said):
    assert f'<summary>{said}</summary>\n\n| a |\n' in readme.folded(rows, '| a |\n')

# ---- around the text -------------------------------------------------------------------------

def between(text, begin, end):
    "That part of a page, parsed; to parse all of every page takes a minute."
    return BeautifulSoup(text.partition(begin)[2].partition(end)[0], 'html.parser')

@pytest.fixture(scope='module')
def texts(site):
    "The text of each page, by its address; not of those that only lead on, nor of the explorer."
    found = {p.relative_to(site).as_posix(): p.read_text(encoding='utf-8')
             for p in sorted(site.rglob('*.html')) if p.name != 'explorer.html'}
    return {name: text for name, text in found.items() if 'http-equiv="refresh"' not in text}

def title(text):
    return words(BeautifulSoup(re.search('<h1[^>]*>(.*?)(<a|</h1>)', text, re.S)[1],
                               'html.parser').get_text())

def test_sidebar_has_the_sections_of_the_page(texts):
    "At every width; below the page's own entry, which says that it is the one that is read."
    for name, text in texts.items():
        bar = between(text, '<div class="sidebar-tree">', '<div class="main">')
        here = [a.get('aria-current') for a in bar.select('li.current-page > a')]
        assert here == ['page']*(name not in ('index.html', 'search.html')), name
        listed = [a['href'] for a in bar.select('.toc-tree > ul > li > a')]
        own = re.findall('<h2>(?:(?!</h2>).)*<a class="headerlink" href="(#[^"]+)"', text, re.S)
        assert [h for h in listed if h in own] == own, name
        assert text.count('class="toc-tree') == bool(listed), name

def test_neighbours_are_named_by_their_titles(texts):
    for stem in PAGES:
        pages = between(texts[f'{stem}.html'], '<div class="related-pages">', '</footer>')
        for a in pages.select('.next-page, .prev-page'):
            there = os.path.normpath(os.path.join(os.path.dirname(stem), a['href']))
            there = 'Home' if there == 'index.html' else title(texts[there])
            assert words(a.select_one('.title').get_text()) == there, stem

def test_head_says_what_the_page_is_about(texts):
    seen = {}
    for name, text in texts.items():
        meta = {m.get('name') or m.get('property'): m['content']
                for m in between(text, '<head>', '</head>').find_all('meta', content=True)}
        said = meta['description']
        assert 20 < len(said) <= 202 and not re.search(r'[$\\<]|\s{2}', said), (name, said)
        assert meta['og:description'] == said and 'theme-color' in meta
        assert name == 'search.html' or meta['og:title'] == title(text), name
        assert not any('://' in x for x in meta.values())
        assert seen.setdefault((meta['og:title'], said), name) == name
    assert ('04 · Why √5?', words(readme.question(LESSONS['04_why_sqrt5']))) in seen

def test_images_are_sized_and_lazy(texts):
    images = [i for text in texts.values() for i in re.findall('<img [^>]*_images/[^>]*>', text)]
    assert len(images) > 50
    for i in images:
        assert re.search('width="[1-9][0-9]+" height="[1-9][0-9]+" loading="lazy" '
                         'decoding="async"', i)

# ---- a small lesson with everything in it ----------------------------------------------------

SMALL = [
    ('code', '#| default_exp core'),
    ('markdown', '# Gain of a ReLU\n\n> What is a gain?\n\nNo `gain`, no $gain$. '
                 'The *gain* of two ReLUs is a gain. See lesson 09, lessons 01 (x) and 01.'),
    ('code', '#| hide\nsecret = 1'), ('code', '#| export\nimport math\nx = 1'),
    ('code', '#| code-fold: true\n#| fig-alt: A line\ny = 2'),
    ('code', "guess = ...  # a number: the answer"),
    ('code', "quiz.guess('answer', guess, 42., se=2.)"),
    ('markdown', 'It is 42.\n\n## Exercises\n\n**1.** ●○○ What?'),
    ('markdown', '## Where to read on\n\n[He](references.bib#He2015).'),
    ('markdown', '## Solutions\n\n**1.** That.'), ('code', '#| code-fold: true\nassert 1')]
CALLS = [('markdown', '# The library\n\n> Which call?'), ('markdown', '## Data'),
         ('markdown', '### `stats`, `Stats`\n\n**Measure a tensor.**'),
         ('code', 'import torch, initnotes as ini\nini.stats(torch.randn(9))')]
ANSWER = dict(output_type='execute_result', metadata={}, execution_count=None, data={
    'text/plain': 'answer: 42', website.GUESS: dict(measured=42., theory=None, se=2.)})

@pytest.fixture
def small(tmp_path):
    "A function that builds a site of one small lesson, and returns its page."
    def build(cells=SMALL):
        (tmp_path/'nbs').mkdir(exist_ok=True)
        for f in ('glossary.md', 'summary.md', 'measured.md', 'references.bib', 'explorer.html'):
            shutil.copy(ROOT/'nbs'/f, tmp_path/'nbs')
        shutil.copytree(ROOT/'nbs'/'images', tmp_path/'nbs'/'images', dirs_exist_ok=True)
        for stem in ('01_core', 'index', 'library'):
            chosen = CALLS if stem == 'library' else cells
            nb = {**LESSONS['01_core'], 'cells': [
                dict(cell_type=kind, id=f'cell{k}', metadata={}, source=text,
                     **(dict(outputs=[ANSWER]*text.startswith('quiz'), execution_count=None)
                        if kind == 'code' else {})) for k, (kind, text) in enumerate(chosen)]}
            (tmp_path/'nbs'/f'{stem}.ipynb').write_text(json.dumps(nb), encoding='utf-8')
        website.build(tmp_path/'_site', tmp_path, tmp_path/'work')
        return soup(tmp_path/'_site'/'01_core.html').find('article')
    return build

def test_old_addresses_lead_to_the_new_ones(site):
    moved = website.moved(LESSONS, read(ROOT/'nbs'/'library.ipynb'))
    assert website.MOVED.keys() <= moved.keys()
    for old, new in moved.items():
        page = site/f'{old}.html'
        to = soup(page).find('meta', attrs={'http-equiv': 'refresh'})['content'].split('url=')[1]
        assert (page.parent/to).resolve() == site/f'{new}.html' and (site/f'{new}.html').is_file()

def test_small_lesson(small):
    page = small()
    assert 'secret' not in page.get_text() and 'import math' in page.get_text()
    # that of the solution is folded already
    assert page.find(class_='tag_exported') and len(page.find_all('details', class_='hide')) == 1
    assert page.find('details', class_='solution').find('pre').get_text().strip() == 'assert 1'
    asked = json.loads(page.find(class_='guess')['data-asked'])
    assert asked == dict(what='cell5', kind='number', n=1, choices=[], measured=42, theory=None,
                         se=2)
    linked = {a.get_text(): a['href'] for a in page.find_all('a', href=re.compile('glossary'))}
    assert linked == dict(gain='glossary.html#term-gain', ReLUs='glossary.html#term-ReLU')
    assert page.find('a', href='references.html#he2015').get_text() == 'He'

@pytest.mark.parametrize('text, said',
                         [('[x](no_such_page.md)', 'no_such_page'),
                          ('[He](references.bib#He1815)', 'he1815'), ('# a\n\n### b', 'H1 to H3')])
def test_builder_refuses(small, capsys, text, said):
    with pytest.raises(SystemExit, match='status 1'):
        small(SMALL + [('markdown', text)])
    assert said in capsys.readouterr().err

# ---- references and glossary -----------------------------------------------------------------

def test_references_are_those_cited():
    cited = {key for nb in PAGES.values() for key in website.cited(nb, BIB)}
    assert cited == set(BIB), (cited - set(BIB), set(BIB) - cited)

def uncited(text):
    "Mentions of papers that do not link to their entry, and links with another year or number."
    text = website.citations(text, BIB)
    for what, key in re.findall(rf'\[((?:[^][]|\[[^][]*\])*){website.CITATION.pattern}', text):
        for number in re.findall(r'arXiv (\S+?)\)', what):
            if number != BIB.get(key, {}).get('eprint'):
                yield f'{what}: {key} has another arXiv number'
        for year in re.findall(r'\b(?:19|20)\d\d\b(?!\.)', what):
            if year != BIB.get(key, {}).get('year'):
                yield f'{what}: {key} has another year'
    rest = re.sub(r'\[(?:[^][]|\[[^][]*\])*\]\((?!https://arxiv)[^)]*\)', '', text)
    rest = rest.replace('https://arxiv.org', 'arXiv')
    yield from (f'{m}: not a link to references.bib'
                for m in re.findall(r'.{0,30}(?:arXiv|\((?:19|20)\d\d\)).{0,20}', rest))

@pytest.mark.parametrize('stem', PAGES)
def test_papers_are_linked(stem):
    for c in PAGES[stem]['cells']:
        if c['cell_type'] == 'markdown': assert list(uncited(source(c))) == []

@pytest.mark.parametrize(
    'text',
    ['He (2015) says', 'as in arXiv 1502.01852', '[He (arXiv 1502.01853)](references.bib#He2015)',
     '[Glorot (2011)](references.bib#Glorot2010)', '[X 2099](https://arxiv.org/abs/2099.99999)'])
def test_uncited_paper_is_found(text): assert list(uncited(text))

def test_cited_paper_is_found():
    text = '[He et al. 2015](https://arxiv.org/abs/1502.01852)'
    assert website.citations(text, BIB) == '[He et al. 2015](references.bib#He2015)'
    assert website.anchored(text, BIB) == '[He et al. 2015](#he2015)' and not list(uncited(text))

def test_bibliography_is_read():
    assert BIB['He2015']['eprint'] == '1502.01852'
    assert len(BIB) == (ROOT/'nbs'/'references.bib').read_text(encoding='utf-8').count('\n@') + 1
    assert website.reference('He2015', BIB['He2015']).splitlines()[1].startswith(
        'Kaiming He, Xiangyu Zhang, Shaoqing Ren and Jian Sun. *Delving')

@pytest.mark.parametrize('stem', LESSONS)
def test_first_uses_are_linked(site, stem):
    "Each word of the glossary at most once, and every one that the prose uses."
    page = soup(site/f'{stem}.html').find('article')
    linked = [a['href'].partition('#term-')[2]
              for a in page.find_all('a', href=re.compile('^glossary.html#term-'))]
    assert len(linked) == len(set(linked)) and (len(linked) >= 3 or readme.is_workshop(stem))
    not_prose = ['pre', 'code', 'table', 'h1', 'h2', 'h3', 'h4', 'blockquote', 'a']
    for t in page.find_all(not_prose) + page.find_all(class_='math'):
        if t.name != 'a' or 'glossary' not in t.get('href', ''): t.decompose()
    prose = words(page.get_text())
    terms = website.terms((ROOT/'nbs'/'glossary.md').read_text(encoding='utf-8'))
    for entry in set(terms.values()):
        spellings = [s for s, e in terms.items() if e == entry]
        longer = [t for t in terms if any(x in t and x != t for x in spellings)]    # their own
        rest = re.sub('|'.join(map(re.escape, longer)), '', prose, flags=re.I) if longer else prose
        used = any(re.search(rf'(?<![\w-]){re.escape(s)}s?(?![\w-])', rest, re.I)
                   for s in spellings)
        assert not used or any(s.replace(' ', '-') in linked for s in spellings), entry

# ---- index and README ------------------------------------------------------------------------

def test_claims_page_has_every_row(site):
    rows = [r for name, r in readme.figure_rows(LESSONS) if not readme.is_appendix(name)]
    page = soup(site/'claims.html').find('article')
    tables = page.select('details.ledger table')
    assert len(page.find_all('tr')) == len(rows) + len(tables)
    assert str(len(rows)) in page.p.get_text() and len(tables) == len({name for name, r in (
        readme.figure_rows(LESSONS)) if not readme.is_appendix(name)})
    assert all('all inside' in s.get_text() or '1 check, inside' in s.get_text()
               for s in page.find_all('summary'))

def test_readme_and_index_agree():
    "By construction: both are made from the lessons, and the README's answer is the index's."
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    assert readme.answer(LESSONS) in text and readme.picture(LESSONS) in text
    spoilt = text.replace('it is the one slope', 'it is a slope')
    assert readme.renew(spoilt, (readme.answer,), 'README.md', LESSONS) == text != spoilt
    with pytest.raises(SystemExit, match='expected one block'):
        readme.renew('nothing', (readme.answer,), 'README.md', LESSONS)

# ---- around it -------------------------------------------------------------------------------

def test_workflow_publishes_the_site():
    text = (ROOT/'.github'/'workflows'/'site.yaml').read_text(encoding='utf-8')
    steps = yaml.safe_load(text)['jobs']['publish']['steps']
    assert any(s.get('run') == 'make site' for s in steps)
    assert any(s.get('with', {}).get('path') == '_site' for s in steps)

def test_citation_is_that_of_the_package():
    cff = yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8'))
    assert cff['cff-version'] == '1.2.0' and cff['version'] == website.CFG['version']
    assert cff['authors'] == [dict(name=website.CFG['author'])]
