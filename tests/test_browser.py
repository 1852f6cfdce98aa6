"""A real browser opens the site from the disk, and runs the lessons in JupyterLab.

`make test` opens one page of each kind; `make proof` every page, in both themes and all widths,
and every lesson. The browser is a chromium or chrome that is installed. Pictures of every page that
was opened are kept in _build/screenshots: look at them."""
import json, os, re, shutil, subprocess, sys, time
from importlib.util import find_spec
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

import apidoc, lab as learners, readme, website
from conftest import CHROMIUM, ROOT, write_notebook
from instep import guess_of, read

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings('ignore::PendingDeprecationWarning')]
AXE = Path(find_spec('axe_playwright_python').origin).parent/'axe.min.js'
LESSONS = readme.read_notebooks()
LIBRARY = read(ROOT/'nbs'/'library.ipynb')
PAGES = [*(f'{stem}.html' for stem in (*LESSONS, *readme.read_pages())), 'claims.html',
         'glossary.html', 'summary.html', 'measured.html', 'references.html', 'genindex.html',
         'search.html', 'explorer.html', *(f'api/{task}.html' for task in apidoc.tasks(LIBRARY))]
KINDS = [f'{max(LESSONS)}.html', 'index.html', 'glossary.html', 'search.html', 'library.html',
         'api/initialize.html', 'howto/which_start.html']
SCREENS = {'wide': dict(width=1280, height=900), 'phone': dict(width=390, height=844),
           'laptop': dict(width=1366, height=768)}
# Opened to see whether they fit, and no more.
MORE = ['10_depth.html', 'claims.html', 'genindex.html']
WIDTHS = (320, 390, 768, 1024, 1280, 1366, 1440)

@pytest.fixture(scope='module')
def browser():
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield browser
        browser.close()

def open_page(browser, url, theme='light', screen='wide'):
    "The page with its formulas, and a list: its complaints, what it asks of other machines."
    page, complaints = browser.new_page(color_scheme=theme, viewport=SCREENS[screen]), []
    page.on('console', lambda m: complaints.append(f'console {m.type}: {m.text}')
            if m.type in ('error', 'warning') else None)
    page.on('pageerror', lambda e: complaints.append(f'error: {e}'))
    page.on('request', lambda r: None if re.match('file:|data:|blob:|about:', r.url)
            else complaints.append(f'request to {r.url}'))
    page.goto(url)
    page.add_style_tag(content='* { animation: none !important; transition: none !important; }')
    page.evaluate('window.MathJax?.startup?.promise')
    return page, complaints

FORMULAS = """[...document.querySelectorAll('.math')].filter(m => !m.querySelector('mjx-container')
  || m.querySelector('mjx-merror, [data-mjx-error], [data-mml-node=merror], [fill=red]'))
  .map(m => m.textContent.slice(0, 80) || m.innerHTML.slice(0, 300))"""
# Of the spans of a kind that stand on the same ground one is enough: a page has thousands.
THIN = """() => {
  const seen = new Set();
  document.querySelectorAll('details').forEach(d => d.open = true);
  for (const s of document.querySelectorAll('.highlight span')) {
    const key = s.className + getComputedStyle(s.closest('.highlight')).backgroundColor
      + s.closest('div.cell, dl, section').className;
    if (seen.has(key)) s.replaceWith(...s.childNodes); else seen.add(key) } }"""

def barriers(page):
    "What axe finds wrong for readers who see, hear or move otherwise; contrast, for one."
    page.evaluate(THIN)
    page.add_script_tag(path=AXE)
    found = page.evaluate("axe.run(document, {preload: false, resultTypes: ['violations'], "
                          "runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa']})")
    return [f"{v['id']}: {n['html'][:120]} {n['failureSummary'][:300]}" for v in found['violations']
            for n in v['nodes']]

@pytest.mark.parametrize('name, theme', [
    pytest.param(name, theme, marks=[pytest.mark.proof]*(name not in KINDS or theme == 'dark'))
    for name in PAGES for theme in ('light', 'dark')])
def test_page(site, browser, name, theme):
    page, complaints = open_page(browser, (site/name).as_uri(), theme)
    assert page.evaluate(FORMULAS) == []
    shots = ROOT/'_build'/'screenshots'
    shots.mkdir(parents=True, exist_ok=True)
    for screen, size in SCREENS.items():
        page.set_viewport_size(size)
        picture = f"{name.removesuffix('.html').replace('/', '-')}-{screen}-{theme}.jpg"
        page.screenshot(path=shots/picture, type='jpeg', quality=60, full_page=True)
    page.set_viewport_size(SCREENS['wide'])
    assert barriers(page) == [] and complaints == []
    page.close()

ASKING = {stem: [c for c in nb['cells'] if guess_of(c)] for stem, nb in LESSONS.items()}
ASKING = {stem: cells for stem, cells in ASKING.items() if cells}

def hidden(page): return page.locator('article [hidden]').count()

# ---- nothing is wider than its screen, nothing is clipped ------------------------------------

# Also what waits for a click or a guess. Where `.content` scrolls by itself, it hides what is wide.
UNFOLD = "document.querySelectorAll('details').forEach(d => d.open = true);" \
         "document.querySelectorAll('article [hidden]').forEach(x => x.hidden = false)"
TOO_WIDE = """['html', '.content'].map(s => document.querySelector(s))
  .some(e => e.scrollWidth > Math.min(innerWidth, e.clientWidth))"""
CLIPPED = """[...document.querySelectorAll('article pre')]
  .filter(p => p.checkVisibility() && p.scrollWidth > p.clientWidth)
  .map(p => `clipped: ${p.textContent.slice(0, 60)}`)"""

def misfits(page):
    "Screens narrower than the page, and code that is clipped on one of 1,280 pixels."
    page.evaluate(UNFOLD)
    for width in WIDTHS:
        page.set_viewport_size(dict(width=width, height=900))
        if page.evaluate(TOO_WIDE): yield f'wider than {width} pixels'
        if width == 1280: yield from page.evaluate(CLIPPED)

@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.proof]*(name not in (*KINDS, *MORE))) for name in PAGES])
def test_page_fits_every_screen(site, browser, name):
    page, complaints = open_page(browser, (site/name).as_uri())
    assert [*misfits(page), *complaints] == []
    page.close()

@pytest.mark.parametrize('old, new, said', [
    (r'<article[^>]*>', r'\g<0><div style="width: 350px">.</div>', ['wider than 320 pixels']),
    (r'<article[^>]*>', rf'\g<0><pre>{"x"*130}</pre>', ['clipped: ' + 'x'*60]),
    (r'<article[^>]*>', rf'\g<0><details><pre>{"x"*130}</pre></details>', ['clipped: ' + 'x'*60]),
    ('</head>', '<style>.content { flex-shrink: 0; }</style></head>',
     [f'wider than {w} pixels' for w in (320, 390, 768, 1024)])])
def test_misfits_are_seen(site, browser, tmp_path, old, new, said):
    shutil.copytree(site/'_static', tmp_path/'_static')
    text = (site/'search.html').read_text(encoding='utf-8')
    (tmp_path/'a.html').write_text(re.sub(old, new, text, count=1), encoding='utf-8')
    page, _ = open_page(browser, (tmp_path/'a.html').as_uri())
    assert list(misfits(page)) == said
    page.close()

# ---- paper -----------------------------------------------------------------------------------

# What is fixed on the screen would stand on every sheet.
PAPER = """[...document.querySelectorAll('body *')].filter(x => x.checkVisibility() &&
    (x.matches('.sidebar-drawer, .guess form, .copybtn, .related-pages')
     || getComputedStyle(x).position === 'fixed')).map(x => `on paper: ${x.className}`)
  .concat([...document.querySelectorAll('article details *, article .cell_output')]
    .filter(x => !x.closest('mjx-container, .copybtn') && x.textContent.trim())
    .filter(x => !x.getClientRects().length)
    .map(x => `not on paper: ${x.textContent.slice(0, 60)}`))"""

def unprinted(page):
    "What is missing or clipped on paper, or should not be there; the width is that of A4."
    page.set_viewport_size(dict(width=673, height=1000))
    page.emulate_media(media='print')
    return page.evaluate(PAPER) + page.evaluate(CLIPPED) + ['wide']*page.evaluate(TOO_WIDE)

@pytest.mark.parametrize('name', [
    pytest.param(f'{s}.html', marks=[pytest.mark.proof]*(s != min(ASKING))) for s in LESSONS])
def test_lesson_on_paper(site, browser, name):
    page, _ = open_page(browser, (site/name).as_uri(), 'dark')
    assert hidden(page) or name.removesuffix('.html') not in ASKING
    assert unprinted(page) == []
    page.emulate_media(media='screen')
    pages = page.pdf(format='A4').count(b'/Type /Page\n')
    assert pages > 5 and not page.locator('article details[open]').count()    # folded again
    page.close()

def test_a_lesson_that_prints_badly_is_seen(site, browser, tmp_path):
    shutil.copytree(site/'_static', tmp_path/'_static')
    sheet = tmp_path/'_static'/'site.css'
    sheet.write_text(sheet.read_text(encoding='utf-8').replace('@media print', '@media none'))
    shutil.copy(site/f'{min(ASKING)}.html', tmp_path/'a.html')
    page, _ = open_page(browser, (tmp_path/'a.html').as_uri())
    found = {f.partition(':')[0] for f in unprinted(page)}
    assert {'clipped', 'on paper', 'not on paper'} <= found
    page.close()

# ---- finding one's way -----------------------------------------------------------------------

def test_sections_are_reached_on_a_phone_with_the_keyboard(site, browser):
    page, complaints = open_page(browser, (site/f'{min(ASKING)}.html').as_uri(), screen='phone')
    link = page.locator('.sidebar-tree .current-page > .toc-tree a').first
    assert not link.is_visible()
    page.locator('#__navigation').focus(); page.keyboard.press('Space')
    link.wait_for(state='visible')
    assert page.evaluate('a => a.getBoundingClientRect().top < innerHeight', link.element_handle())
    link.press('Enter')
    link.wait_for(state='hidden')
    assert page.url.endswith(link.get_attribute('href')) and complaints == []
    page.close()

def test_sidebar_shows_the_section_that_is_read(site, browser):
    page, _ = open_page(browser, (site/f'{min(ASKING)}.html').as_uri(), screen='laptop')
    page.locator('#exercises').scroll_into_view_if_needed()
    page.evaluate("document.querySelector('#exercises').scrollIntoView()")
    page.wait_for_selector('.sidebar-tree li.scroll-current > a[href="#exercises"]')
    page.close()

def test_code_is_copied(site, browser):
    "With the keyboard; what was printed has no button, and no button is seen before it is needed."
    page, complaints = open_page(browser, (site/f'{min(ASKING)}.html').as_uri())
    button = page.locator('.cell_input').get_by_role('button', name='Copy to clipboard',
                                                     exact=True).first
    button.wait_for(state='attached')
    assert page.locator('.cell_output .copybtn').count() == 0
    assert button.evaluate('b => getComputedStyle(b).opacity') == '0'
    button.focus(); page.keyboard.press('Tab'); page.keyboard.press('Shift+Tab')
    assert button.evaluate('b => getComputedStyle(b).opacity') == '1'
    page.keyboard.press('Enter')
    code = page.locator('.cell_input pre').first.inner_text()
    page.evaluate("document.querySelector('article').prepend(document.createElement('textarea'))")
    page.locator('article textarea').press('Control+v')
    assert page.locator('article textarea').input_value() == code.rstrip('\n')
    assert complaints == []
    page.close()

def test_images_say_their_size(site, browser):
    page, _ = open_page(browser, (site/f'{min(ASKING)}.html').as_uri())
    page.locator('.show-all input').check()
    wrong = page.evaluate("""() => Promise.all([...document.querySelectorAll('article img')].map(
      async i => { i.loading = 'eager'; await i.decode();
        const [width, height] = ['width', 'height'].map(x => i.getAttribute(x));
        return Math.abs(width*i.naturalHeight/i.naturalWidth - height) <= 1 ? '' : i.src }))""")
    assert wrong and not any(wrong)
    page.close()

def test_every_page_is_opened(site):
    moved = {f'{old}.html' for old in website.moved(LESSONS, LIBRARY)}     # these only lead on
    made = {p.relative_to(site).as_posix() for p in site.rglob('*.html')}
    assert sorted(PAGES) == sorted(made - moved)

@pytest.mark.parametrize(
    'old, new, said',
    [(r'<article[^>]*>', r'\g<0><p class="math">\\(\\frac{1\\)</p>', 'frac'),
     (r'<article[^>]*>', r'\g<0><p class="math">\\(\\nosuchmacro\\)</p>', 'nosuchmacro'),
     (r'<article[^>]*>', r'\g<0><p style="color: #999; background: #fff">faint</p>',
      'color-contrast'), (r'<article[^>]*>', r'\g<0><script>undefined.x</script>', 'Cannot read'),
     (r'<article[^>]*>', r'\g<0><img src="http://127.0.0.1:9/x.png" alt="x">',
      'request to http://127.0.0.1:9'),
     (r'<article[^>]*>', r'\g<0><div style="width: 3000px">.</div>', 'wide')])
def test_planted_faults_are_seen(site, browser, tmp_path, old, new, said):
    shutil.copytree(site, tmp_path/'s')
    path = tmp_path/'s'/'02_data.html'
    text = path.read_text(encoding='utf-8')
    path.write_text(re.sub(old, new, text, count=1), encoding='utf-8')
    page, complaints = open_page(browser, path.as_uri())
    wide = [] if page.evaluate('document.documentElement.scrollWidth <= innerWidth') else ['wide']
    unreadable = barriers(page) if 'contrast' in said else []
    found = page.evaluate(FORMULAS) + wide + unreadable + complaints
    assert any(said in f for f in found), found
    page.close()

# ---- guesses ---------------------------------------------------------------------------------

@pytest.mark.parametrize('stem', [
    pytest.param(s, marks=[pytest.mark.proof]*(s != min(ASKING))) for s in ASKING])
def test_answers_wait_for_a_guess(site, browser, stem):
    page, complaints = open_page(browser, (site/f'{stem}.html').as_uri())
    forms = page.locator('.guess form')
    assert forms.count() == len(ASKING[stem])
    for k, cell in enumerate(ASKING[stem]):
        kind, n, choices = guess_of(cell)
        before, form = hidden(page), forms.nth(k)
        assert before and form.is_visible(), 'the question is hidden, or its answer is not'
        if kind == 'choice': form.locator('select').select_option(choices[0])
        else:
            form.locator('input').fill('much'); form.locator('button').first.click()
            assert 'Please type' in form.locator('p').inner_text() and hidden(page) == before
            form.locator('input').fill(' '.join(['0.5']*n))
        form.locator('button').first.click()
        assert re.search('guessed|Right|You said', form.locator('p').inner_text())
        assert hidden(page) < before
    assert hidden(page) == 0
    n = forms.count()
    assert f'{n} of {n} made' in page.locator('.guess-sum').inner_text()
    page.reload()           # a guess that was made is kept
    assert hidden(page) == 0 and complaints == []
    page.evaluate('localStorage.clear()'); page.reload()
    assert hidden(page)
    page.locator('.guess form button').nth(1).click()
    assert forms.nth(0).locator('p').inner_text().startswith('Measured')
    page.locator('.show-all input').check()
    assert hidden(page) == 0
    page.locator('.show-all input').uncheck()
    assert bool(hidden(page)) == (forms.count() > 1)
    page.evaluate('localStorage.clear()')
    page.close()

def test_answers_can_be_read_without_scripts(site, browser):
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto((site/f'{min(ASKING)}.html').as_uri())
    assert hidden(page) == 0 and page.locator('.guess form').count() == 0
    page.context.close()

# ---- JupyterLab ------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "Where a JupyterLab serves a learner's copies, as `make lab` does, and where they lie."
    tmp = tmp_path_factory.mktemp('lab')
    learners.refresh(ROOT/'nbs', tmp/'lab'); learners.no_popups()
    # as many threads as there are cores
    env = {k: v for k, v in os.environ.items() if k != 'OMP_NUM_THREADS'}
    env |= dict(PYTHONPATH=os.pathsep.join([str(ROOT/'tools'/'offline'), str(ROOT)]))
    for name, folder in dict(JUPYTER_RUNTIME_DIR='run', JUPYTER_CONFIG_DIR='config',
                             JUPYTER_DATA_DIR='data', JUPYTERLAB_SETTINGS_DIR='settings',
                             JUPYTERLAB_WORKSPACES_DIR='spaces', IPYTHONDIR='ipython').items():
        env[name] = str(tmp/folder)
    options = ['--no-browser', '--expose-app-in-browser', '--port=0', '--ip=127.0.0.1',
               '--ServerApp.token=', '--ServerApp.password=', '--allow-root',
               f'--ServerApp.root_dir={tmp/"lab"}', *learners.OPTIONS]
    with open(tmp/'log', 'w') as log:
        server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', *options], env=env,
                                  stdout=log, stderr=log)
    for _ in range(300):
        if found := list((tmp/'run').glob('jpserver-*.json')): break
        assert server.poll() is None, (tmp/'log').read_text()
        time.sleep(.2)
    yield json.loads(found[0].read_text())['url'], tmp/'lab'
    server.terminate(); server.wait(20)

OPEN = 'window.jupyterapp?.shell?.currentWidget?.content?.model?.cells?.length > 1'
CELLS = "[...jupyterapp.shell.currentWidget.content.model.cells].filter(c => c.type == 'code')"
ERRORS = (
    "flatMap(c => c.outputs.toJSON().filter(o => o.output_type == 'error' || o.name == 'stderr'))")

def run_all(browser, url):
    "Opens a notebook and runs all its cells; how many ran, their errors, and which are folded."
    page = browser.new_page(viewport=SCREENS['wide'])
    page.goto(url)
    page.wait_for_function(OPEN, timeout=60_000)
    page.evaluate('jupyterapp.shell.currentWidget.context.ready'
                  '.then(() => jupyterapp.shell.currentWidget.sessionContext.ready)')
    folded = page.evaluate(
        CELLS + ".filter(c => c.getMetadata('jupyter')?.source_hidden).map(c => c.id)")
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(f'{CELLS}.every(c => c.executionCount) || {CELLS}.{ERRORS}.length',
                           timeout=300_000)
    name = url.rpartition('/')[2].partition('.')[0]
    page.screenshot(path=ROOT/'_build'/'screenshots'/f'lab-{name}.png')
    ran = page.evaluate(f'{CELLS}.filter(c => c.executionCount).length')
    errors = page.evaluate(f'{CELLS}.{ERRORS}')
    # For the sake of the next lesson, its kernel goes.
    page.evaluate('jupyterapp.shell.currentWidget.sessionContext.shutdown()')
    page.close()
    return ran, errors, folded

def code_cells(path):
    return [c for c in json.loads(path.read_text(encoding='utf-8'))['cells']
            if c['cell_type'] == 'code']

@pytest.mark.lab
@pytest.mark.proof
@pytest.mark.parametrize('stem', [*LESSONS, *readme.read_pages()])
def test_lab_runs_a_lesson(lab, browser, stem):
    url, folder = lab
    code = code_cells(folder/f'{stem}.ipynb')
    ran, errors, folded = run_all(browser, f'{url}lab/tree/{stem}.ipynb?reset')
    assert (ran, errors) == (len(code), [])
    assert folded == [
        c['id'] for c in code if c['metadata'].get('jupyter', {}).get('source_hidden')]
    shutil.copy(folder/f'{stem}.ipynb', folder/'before.ipynb')
    assert learners.refresh(ROOT/'nbs', folder) == []  # what was run stays as it is
    assert (folder/f'{stem}.ipynb').read_bytes() == (folder/'before.ipynb').read_bytes()

@pytest.mark.lab
@pytest.mark.proof
def test_lab_opens_at_the_index_without_a_popup(lab, browser):
    page = browser.new_page(viewport=SCREENS['wide'])
    page.goto(lab[0])               # where the server sends a browser that it opens
    page.wait_for_function(OPEN, timeout=60_000)
    assert page.url.rstrip('?').endswith('/lab/tree/index.ipynb')
    page.wait_for_timeout(2000)
    shown = '.Toastify__toast, .jp-Dialog'
    assert page.locator(shown).count() == 0, page.locator(shown).first.inner_text()
    page.close()

@pytest.mark.lab
@pytest.mark.proof
def test_lab_shows_an_error(lab, browser):
    url, folder = lab
    write_notebook(folder/'bad.ipynb', 'x = 1', 'x/0')
    assert [e['ename']
            for e in run_all(browser, url + 'lab/tree/bad.ipynb?reset')[1]] == ['ZeroDivisionError']
