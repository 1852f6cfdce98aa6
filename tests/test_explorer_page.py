"The explorer's page: a browser drives every control by mouse and by keyboard, from the disk."
import gzip, math, re

import pytest
from playwright.sync_api import sync_playwright

import website
from conftest import CHROMIUM, ROOT
from test_browser import barriers, open_page

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings('ignore::PendingDeprecationWarning')]
PATH = ROOT/'nbs'/'explorer.html'
TANH = '#act=tanh&sw=1.8&sb=0.1&depth=20&width=32&residual=0&seed=3'
LESSONS = '00_start', '05_kaiming', '10_depth'

@pytest.fixture(scope='module')
def browser():
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield browser
        browser.close()

@pytest.fixture
def explorer(browser):
    "A function that opens the page at a state; it must have said nothing and asked for nothing."
    opened = []
    def visit(state='', script=None, theme='light', width=1366, url=PATH.as_uri()):
        page, complaints = open_page(browser, 'about:blank', theme)
        page.set_viewport_size(dict(width=width, height=800))
        page.emulate_media(reduced_motion='reduce')
        if script: page.add_init_script(script)
        page.goto(url + state)
        opened.append((page, complaints))
        return page
    yield visit
    for page, complaints in opened:
        page.close()
        assert complaints == []

def settled(page):
    "Waits until ten nets are there."
    page.wait_for_function("document.querySelector('#signal g').getAttribute('aria-label')"
                           ".includes('median of ten nets')")
    return page

def state(page):
    "What the address says, once it has been written there."
    page.wait_for_timeout(650)
    return dict(kv.partition('=')[::2] for kv in page.evaluate('location.hash')[1:].split('&'))

def fits(page): return page.evaluate('document.documentElement.scrollWidth <= innerWidth')

def centre(page, what):
    box = page.locator(what).bounding_box()
    return box['x'] + box['width']/2, box['y'] + box['height']/2

def drag(page, what, dx, dy):
    x, y = centre(page, what)
    page.mouse.move(x, y); page.mouse.down()
    page.mouse.move(x + dx/2, y + dy/2); page.mouse.move(x + dx, y + dy); page.mouse.up()

def table(page):
    "The table of values: a list of numbers for each layer."
    if not page.evaluate("document.querySelector('#values').open"): page.click('#values summary')
    page.wait_for_selector('#values tbody tr')
    rows = page.eval_on_selector_all('#values tbody tr', "rows => rows.map(r => "
                                     "[...r.cells].map(c => c.textContent))")
    return [[number(x) for x in row] for row in rows]

def number(text):
    "What a cell says; of a range, its ends."
    if ' – ' in text: return [number(x) for x in text.split(' – ')]
    if text == '…': return math.nan
    if not (found := re.fullmatch(r'([-−\d.]+·)?10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)', text)):
        return math.inf if 'inf' in text else float(text)
    power = int(found[2].translate(str.maketrans('⁻⁰¹²³⁴⁵⁶⁷⁸⁹', '-0123456789')))
    return float((found[1] or '1·')[:-1])*10.**power

def near(a, b, rel=.006): return a == b or math.isclose(a, b, rel_tol=rel)

# ---- the file --------------------------------------------------------------------------------

def test_one_small_file():
    text = website.lightened(PATH.read_text(encoding='utf-8'))
    assert len(text.encode()) <= 60_000 and len(gzip.compress(text.encode())) <= 28_000
    loads = r'(?:src|href)="(?!#|data:|[\w.#=&]+")[^"]*|url\((?!#)[^)]*|@import|fetch\('
    assert re.findall(loads, text) == []

def test_without_scripts_pictures_stand_there(browser, explorer):
    page = browser.new_context(java_script_enabled=False).new_page()
    page.set_viewport_size(dict(width=320, height=700))
    page.goto(PATH.as_uri())
    assert page.locator('noscript svg[role=img]').count() == 2 and page.locator('#app').is_hidden()
    assert all(page.locator('noscript svg').nth(k).is_visible() for k in (0, 1))
    assert page.locator('body').bounding_box()['width'] == 320
    curves = [d for d in re.findall(r'class="theory[^"]*" style="[^"]*" d="([^"]*)"',
                                    page.content().partition('</noscript>')[0])]
    page.context.close()
    states = [(2**.5, 0), (3**-.5, 192**-.5), (1, 0)]     # Kaiming, PyTorch's default, LeCun
    live = explorer()
    assert len(curves) == len(states)
    for d, (sw, sb) in zip(curves, states):
        q = live.evaluate(f"Explorer.theory({{act: 'relu', sw: {sw}, sb: {sb}, depth: 50}})"
                          ".map(t => t.q)")
        for x, y in re.findall(r'[ML](\d+) (\d+)', d):
            layer = round((int(x) - 40)/560*49)
            assert abs(20 - 13*math.log10(q[layer]) - int(y)) < 1.5, (sw, x, y)

# ---- looks -----------------------------------------------------------------------------------

@pytest.mark.parametrize('width, theme', [
    pytest.param(w, t, marks=[pytest.mark.proof]*((w, t) not in ((320, 'dark'), (1366, 'light'))))
    for w in (320, 360, 1366) for t in ('light', 'dark')])
def test_fits_and_has_no_barriers(explorer, width, theme):
    page = explorer(theme=theme, width=width)
    assert fits(page)
    if width < 1366: assert barriers(page) == []          # with its question
    page.goto(PATH.as_uri() + TANH + '&show&guess=-2'); page.reload()
    settled(page); table(page)
    page.locator('#quiz').scroll_into_view_if_needed()
    page.locator('#quiz button').nth(1).click()
    assert fits(page)
    shots = ROOT/'_build'/'screenshots'
    shots.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=shots/f'explorer-{width}-{theme}.png', full_page=True)
    if width > 320: assert barriers(page) == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != 'rgb(255, 255, 255)'
    assert dark == (theme == 'dark')

def test_theme_of_the_site(explorer):
    page = explorer()
    ground = "getComputedStyle(document.body).backgroundColor"
    for chosen, found in (('dark', 'rgb(19, 20, 22)'), ('auto', 'rgb(255, 255, 255)')):
        page.evaluate(f"localStorage.theme = '{chosen}'"); page.reload()
        assert page.evaluate(ground) == found
    page.evaluate('localStorage.clear()')

def test_print_has_values_and_no_buttons(explorer):
    page = settled(explorer(TANH + '&show'))
    page.emulate_media(media='print')
    assert page.locator('#signal svg').is_visible() and page.locator('#says').is_visible()
    assert not any(b.is_visible() for b in page.locator('button').all())

# ---- the guess -------------------------------------------------------------------------------

def test_nothing_is_shown_before_a_guess(explorer):
    page = explorer(TANH)
    assert page.locator('#ask').is_visible() and page.locator('#show').is_disabled()
    for hidden in ('#says', '#python', '#difference', '#gradient', '#cobweb', '#values'):
        assert page.locator(hidden).is_hidden(), hidden
    assert page.locator('#signal .theory, #signal .dots').count() == 0
    page.click('#skip')
    assert page.locator('#difference').is_visible() and 'guessed' not in page.inner_text('#says')

def test_guess_by_keyboard(explorer):
    page = explorer(TANH)
    handle = page.get_by_role('slider', name=re.compile('Your guess'))
    handle.focus()
    for key, said in (('ArrowUp', '3.2'), ('ArrowRight', '10'), ('ArrowLeft', '3.2'),
                      ('ArrowDown', '1'), ('PageDown', '10⁻⁵'), ('PageUp', '1'),
                      ('Home', '10⁻⁴⁵'), ('End', '10³⁸')):
        handle.press(key)
        assert said in handle.get_attribute('aria-valuetext'), key
    for _ in range(7): handle.press('PageDown')
    handle.press('Enter')
    settled(page)
    median = table(page)[-1][2]
    page.wait_for_function("document.querySelector('#says').textContent.includes('guessed')")
    found = re.match('You guessed ([^;]*); the median of ten nets is ([^:]*): (.*?)\\. ',
                     page.inner_text('#says'))
    guess = number(found[1])
    assert near(number(found[2]), median) and 0 < guess < 1e4
    off = abs(math.log10(guess/median))
    said = re.search(r'[\d.]+', found[3])
    assert near(float(said[0]), off if 'powers' in found[3] else 10**off, .1)

def test_guess_by_mouse(explorer):
    page = explorer(TANH)
    drag(page, '#signal .knob >> nth=-1', 0, 60)
    guess = float(state(page)['guess'])
    assert -30 < guess < -5
    page.click('#signal svg', position=dict(x=200, y=60))
    assert float(state(page)['guess']) > 5
    page.click('#show')
    settled(page)
    assert 'show' in state(page) and page.locator('#ask').is_hidden()
    page.click('#deal')
    assert page.locator('#ask').is_visible() and page.locator('#show').is_disabled()
    assert page.evaluate("document.activeElement.closest('#signal') !== null")

# ---- the plane -------------------------------------------------------------------------------

def test_point_by_keyboard(explorer):
    page = explorer(TANH + '&show')
    point = page.get_by_role('slider', name=re.compile('Where the weights start'))
    point.focus()
    for key, sw, sb in (('ArrowRight', 1.81, .1), ('ArrowUp', 1.81, .11), ('ArrowLeft', 1.8, .11),
                        ('ArrowDown', 1.8, .1), ('Shift+ArrowRight', 1.9, .1)):
        point.press(key)
        assert point.get_attribute('aria-valuetext') == f'σw {sw:g}, σb {sb:g}', key
    now = state(page)
    assert (now['sw'], now['sb']) == ('1.9', '0.1')

def test_point_by_mouse_and_back(explorer):
    page = settled(explorer(TANH + '&show'))
    before, said = page.evaluate('location.hash'), page.inner_text('#says')
    drag(page, '#plane .knob', -60, -40)
    now = state(page)
    assert float(now['sw']) < 1.6 and float(now['sb']) > .2 and page.inner_text('#says') != said
    x, y = centre(page, '#plane .mark >> nth=-1')          # PyTorch's default attracts
    page.mouse.click(x + 4, y - 3)
    now = state(page)
    assert (now['sw'], now['sb']) == ('0.57735', f'{96**-.5:.5f}')
    page.go_back(); page.go_back()
    assert page.evaluate('location.hash') == before and page.inner_text('#says') == said
    page.go_forward()
    assert page.inner_text('#says') != said

@pytest.mark.parametrize('act', ['relu', 'silu'])
def test_named_starts(explorer, act):
    page = explorer(f'#act={act}&show&width=32&depth=5')
    for m in page.evaluate(f"Explorer.marks('{act}', 32)"):
        page.click(f"#marks [data-key={m['key']}]")
        now = state(page)
        assert near(float(now['sw']), m['sw'], 1e-4)
        assert math.isclose(float(now['sb']), m['sb'], abs_tol=1e-5)
        pressed = page.locator('#marks [aria-pressed=true]').all_inner_texts()
        assert m['name'] in pressed and len(pressed) <= (3 if act == 'relu' else 1)

def test_a_point_on_a_mark_stays_on_it(explorer):
    page = explorer('#act=relu&sw=1.41421&sb=0&show&depth=5')
    page.click('#marks [data-key=torch]')
    page.locator('#width').focus(); page.keyboard.press('Home')
    assert float(state(page)['sb']) == round(96**-.5, 5)

# ---- every other control, and the address ----------------------------------------------------

def test_every_control_by_keyboard_and_mouse(explorer):
    page = settled(explorer(TANH + '&show'))
    def changes(key, value, do):
        do()
        assert state(page)[key] == value, key
    def press(what, *keys):
        page.locator(what).focus()
        for key in keys: page.keyboard.press(key)
    changes('act', 'gelu', lambda: press('#acts :checked', 'ArrowRight'))
    for act in page.evaluate('Object.keys(Explorer.ACTIVATIONS)'):
        changes('act', act, lambda: page.locator(f'#acts [value={act}]').click())
    changes('depth', '21', lambda: press('#depth', 'ArrowRight'))
    changes('depth', '100', lambda: press('#depth', 'End'))
    changes('depth', '2', lambda: page.locator('#depth').click(position=dict(x=1, y=5)))
    changes('width', '48', lambda: press('#width', 'ArrowRight'))
    changes('width', '128', lambda: press('#width', 'End'))
    changes('residual', '1', lambda: page.locator('#residual').click())
    changes('residual', '0', lambda: press('#residual', 'Space'))
    changes('seed', '4', lambda: page.locator('#draw').click())
    changes('seed', '77', lambda: (page.fill('#seed', '77'), page.keyboard.press('Enter')))
    changes('sw', '1.25', lambda: (page.fill('#sw', '1.25'), page.keyboard.press('Tab')))
    changes('sw', '30', lambda: (page.fill('#sw', '99'), page.keyboard.press('Tab')))
    changes('sb', '0.5', lambda: (page.fill('#sb', '.5'), page.keyboard.press('Tab')))
    changes('sb', '0.5', lambda: (page.fill('#sb', ''), page.keyboard.press('Tab')))
    assert page.input_value('#sb') == '0.5'

@pytest.mark.parametrize('hash_', [
    '#act=mish&sw=1.25&sb=0.125&depth=30&width=48&residual=1&seed=12&guess=-3.5&show',
    '#act=selu&sw=0.5&sb=1&depth=2&width=128&residual=0&seed=9999'])
def test_address_there_and_back(explorer, hash_):
    page = explorer(hash_)
    page.locator('#draw').click()
    assert state(page)['seed'] in ('13', '0')
    page.go_back()
    assert page.evaluate('location.hash') == hash_
    assert page.locator('#answer').is_visible() == hash_.endswith('show')
    assert page.locator('#acts :checked').input_value() in hash_
    for key in ('sw', 'sb', 'depth', 'width', 'seed'):
        assert f'{key}={page.input_value("#" + key)}' in hash_
    assert page.locator('#residual').is_checked() == ('residual=1' in hash_)

@pytest.mark.parametrize('hash_', ['#act=nosuch&sw=x&depth=1e9&width=-3', '#', '#%%%&&==',
                                   '#act=toString&sw=NaN&sb=Infinity&seed=-1'])
def test_address_of_nonsense(explorer, hash_):
    page = explorer(hash_)
    assert page.locator('#acts :checked').input_value() == 'relu'
    assert page.input_value('#depth') in ('50', '100') and page.locator('#ask').is_visible()

def test_a_link_and_the_python_are_copied(explorer):
    page = settled(explorer(TANH + '&show'))
    for button in ('#copy-link', '#copy-python'):
        page.click(button)
        page.wait_for_function("document.querySelector('#copied').textContent")
        said = page.inner_text('#copied')
        assert said == 'Copied.' or TANH in said or said == page.inner_text('#python')
    assert 'ini.' in page.inner_text('#python') and page.locator('#copy-python').is_visible()

# ---- what is drawn is what the engine says ---------------------------------------------------

@pytest.mark.parametrize('hash_', [
    TANH, '#act=relu&sw=1.2&sb=0.3&depth=12&width=32&residual=1&seed=5'])
def test_table_says_what_the_engine_says(explorer, hash_):
    page = settled(explorer(hash_ + '&show'))
    rows, now = table(page), state(page)
    asked = {k: float(now[k]) for k in ('sw', 'sb', 'depth', 'width', 'seed')}
    asked |= dict(act=now['act'], residual=now['residual'] == '1')
    theory = page.evaluate('s => Explorer.theory(s)', asked)
    nets = page.evaluate('s => Explorer.simulate(s, 10)', asked)
    assert len(rows) == len(theory) == asked['depth']
    for l, (layer, q, q_nets, ends, diff, diff_nets, grad, grad_nets) in enumerate(rows):
        t, mid = theory[l], lambda xs: (sorted(xs)[4]*sorted(xs)[5])**.5
        assert layer == l + 1
        assert near(q, t['q']**.5) and near(grad, t['grad']**.5)
        assert near(diff, (t['diff']/t['q'])**.5)
        assert near(q_nets, mid([n['q'][l]**.5 for n in nets]))
        assert near(ends[0], min(n['q'][l] for n in nets)**.5)
        assert near(ends[1], max(n['q'][l] for n in nets)**.5)
        assert near(diff_nets, mid([(n['diff'][l]/n['q'][l])**.5 for n in nets]))
        assert near(grad_nets, mid([n['grad'][l]**.5 for n in nets]))
    dots = page.locator('#signal .dots').get_attribute('d').count('M')
    assert dots == 10*asked['depth']
    verdict = page.evaluate('s => Explorer.verdict(s, Explorer.theory(s))', asked)
    assert page.inner_text('#says') == verdict

SILENT = 'window.Worker = class { postMessage() {} }'
@pytest.mark.parametrize('act', ['relu', 'gelu', *(pytest.param(a, marks=pytest.mark.proof) for a in
                                 ('tanh', 'silu', 'mish', 'selu', 'leaky_relu'))])
def test_the_sketch_of_a_drag_is_close(explorer, act):
    "While one drags, the page's own quick theory is drawn; the engine's follows."
    page = explorer(script=SILENT)
    for sw, sb, residual in ((.6, .1, 0), (1.4, 0, 0), (1.7, .3, 0), (1.1, .2, 1)):
        page.goto(f'{PATH.as_uri()}#act={act}&sw={sw}&sb={sb}&depth=30&residual={residual}&show')
        page.reload()
        theory = page.evaluate(f"Explorer.theory({{act: '{act}', sw: {sw}, sb: {sb}, depth: 30, "
                               f"width: 64, residual: {str(bool(residual)).lower()}}})")
        for row, t in zip(table(page), theory):
            assert near(row[1], t['q']**.5, .01) and near(row[6], t['grad']**.5, .02)
            assert near(row[4], (t['diff']/t['q'])**.5, .03), (act, sw, sb, row[0])

def test_without_workers(explorer):
    page = settled(explorer(TANH + '&show', 'window.Worker = undefined'))
    assert len(table(page)) == 20

@pytest.mark.parametrize('sw, way', [(8, 'up'), (.05, 'down')])
def test_nets_that_break(explorer, sw, way):
    page = settled(explorer(f'#act=relu&sw={sw}&sb=0&depth=100&width=32&show'))
    triangles = page.locator('#signal .broken').get_attribute('d')
    assert triangles.count('z') == 10
    assert ('-9z' in triangles) == (way == 'up')
    said = page.locator('#signal').text_content()
    assert ('overflows' if way == 'up' else 'underflows') in said
    last = table(page)[-1]
    assert last[2] == (math.inf if way == 'up' else 0)
    assert len(table(page)) == 100

# ---- the quiz --------------------------------------------------------------------------------

def test_quiz(explorer):
    page, seen, right = explorer(), set(), 0
    page.locator('#quiz').scroll_into_view_if_needed()
    for played in range(1, 25):
        page.wait_for_function("document.querySelectorAll('#quiz button[class=\"\"]').length == 4")
        buttons = page.locator('#quiz button')
        assert buttons.count() == 4 and page.locator('#quiz .right').count() == 0
        assert all('signal ends at' in b.get_attribute('aria-label') for b in buttons.all())
        if played % 2: buttons.nth(played % 4).click()
        else:
            buttons.nth(played % 4).focus(); page.keyboard.press('Enter')
        label = page.locator('#quiz .right').get_attribute('aria-label')
        won = page.inner_text('#quiz-says').startswith('Right')
        right += won
        assert 'PyTorch’s default' in label and label[0] in page.inner_text('#quiz-says b')
        assert won == (label[0] == 'ABCD'[played % 4])
        assert page.inner_text('#score') == f'{right} of {played} right'
        seen.add(won)
        if seen == {True, False}: break
        page.click('#quiz-next')
        page.wait_for_function("!document.querySelector('#quiz-says').textContent")
    assert seen == {True, False}
    page.click('#quiz-open')
    assert (now := state(page))['sw'] == '0.57735' and 'show' in now and now['depth'] == '30'

# ---- in the lessons --------------------------------------------------------------------------

@pytest.mark.site
@pytest.mark.parametrize('stem', LESSONS)
def test_lesson_shows_it(site, browser, explorer, stem):
    page, complaints = open_page(browser, (site/f'{stem}.html').as_uri())
    page.evaluate("localStorage['initnotes show all'] = 'yes'"); page.reload()
    frame = page.locator('iframe.explorer')
    assert frame.count() == 1 and frame.get_attribute('loading') == 'lazy'
    assert frame.get_attribute('title').startswith('Play: ')
    inside, _, query = frame.get_attribute('src').partition('#')
    assert inside == 'explorer.html' and query.endswith('&embed')
    frame.scroll_into_view_if_needed()
    app = page.frame_locator('iframe.explorer')
    app.locator('#skip').click()
    app.locator('#says').wait_for()
    assert app.locator('h1, .lead, #quiz, header').first.is_hidden()
    page.wait_for_function("document.querySelector('iframe.explorer').style.height")
    page.wait_for_timeout(300)
    tall = app.locator('article').bounding_box()['height']
    assert abs(frame.bounding_box()['height'] - tall) < 8
    before = page.evaluate('history.length')
    app.locator('#draw').click(); page.wait_for_timeout(700)
    assert page.evaluate('history.length') == before
    full = app.locator('#full').get_attribute('href')
    assert full.startswith('explorer.html#') and 'embed' not in full and 'seed=1' in full
    page.evaluate('localStorage.clear()')
    assert complaints == []
    page.close()

@pytest.mark.site
def test_presets_stand_on_their_marks(site, explorer):
    page = explorer()
    said = ' '.join((site/f'{stem}.html').read_text(encoding='utf-8') for stem in LESSONS)
    presets = [dict(kv.split('=') for kv in m.replace('&amp;', '&').split('&')) for m in
               re.findall(r'<p class="explorer"><a href="explorer\.html#([^"]*)">', said)]
    named = []
    for p in presets:
        marks = page.evaluate('([act, width]) => Explorer.marks(act, width)',
                              [p['act'], int(p['width'])])
        named += [m['key'] for m in marks if near(float(p['sw']), m['sw'], 1e-4)
                  and abs(float(p['sb']) - m['sb']) < 2e-5]
    assert named == ['lecun', 'gain', 'edge']
