"""Search leads to the right place first: people's own words, typed in a browser, from the disk."""
import json, re, shutil
from html import unescape

import pytest

from conftest import ROOT
from test_browser import LESSONS, barriers, browser, open_page

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings('ignore::PendingDeprecationWarning')]

# What is typed, and where it must lead: first, to one of these pages or sections.
QUERIES = {
    'dying relu': '07_hooks#what-is-a-dead-unit 08_inside#silent-or-dead',
    'dead units': '07_hooks#what-is-a-dead-unit 08_inside#silent-or-dead',
    'nan': 'howto/loss_is_nan',
    'loss is nan': 'howto/loss_is_nan',
    'my loss becomes NaN after a while': 'howto/loss_is_nan howto/loss_is_nan#after-a-good-start',
    'vanishing': 'howto/deep_net',
    'vanishing gradients': 'howto/deep_net',
    'exploding gradient': 'howto/deep_net howto/loss_is_nan',
    'network does not train': 'howto/deep_net',
    'gain of gelu': 'howto/which_start howto/which_start#by-activation',
    'which init for relu': 'howto/which_start howto/which_start#by-activation',
    'how do I initialize my model': 'howto/which_start',
    'cheat sheet': 'howto/which_start',
    'transposed convolution': 'howto/decoder',
    'unet': 'howto/decoder',
    'tied embeddings': 'howto/gpt',
    'transformer': 'howto/gpt',
    'batchnorm': 'howto/batchnorm',
    'torchrun': 'howto/several_gpus',
    'fsdp': 'howto/several_gpus',
    'deepspeed': 'howto/several_gpus',
    'DeepSpeed/FSDP': 'howto/several_gpus',
    'custom training loop': 'howto/own_loop',
    'pytest': 'howto/own_tests',
    'why sqrt 5': '04_why_sqrt5',
    '√5': '04_why_sqrt5',
    'math.sqrt(5)': '04_why_sqrt5',
    'square root of five': '04_why_sqrt5',
    'PyTorch default init': '04_why_sqrt5',
    'all outputs are the same': '13_audit#alike',
    'fan in': 'glossary#term-fan-in',
    'fan-out': 'glossary#term-fan-out',
    'lsuv': '09_lsuv',
    'kaiming': '05_kaiming',
    'kaming': '05_kaiming',
    'He initialization': '05_kaiming',
    'orthogonal': '11_isometry#what-an-orthogonal-matrix-saves',
    'first loss': '13_audit#the-first-loss 12_residual#the-first-loss',
    'learning rate finder': '06a_learner#which-learning-rate',
    'lr finder': '06a_learner#which-learning-rate',
    'edge of chaos': '10_depth#order-or-chaos',
    'mean-field theory': '10_depth#order-or-chaos',
    'forward hook': '07_hooks 07_hooks#a-hook-by-hand',
    'all weights zero': '00_start#then-why-random',
    'symmetry breaking': 'glossary#term-symmetry-breaking 00_start#then-why-random',
    'glorot': 'glossary#term-Xavier',
    'skip connection': '12_residual howto/which_start#residual-streams',
    'jax': '05b_families#jax-s-axes',
    'saturated': '13d_outputs#dead-and-saturated',
    'playground': 'explorer',
    'pickle': '01a_idx#why-not-a-pickle'}
NAMES = ['init_', 'lsuv_', 'assert_healthy', 'ActivationStats', 'kaiming_normal_']
SAME = ['initialization', 'initialisation', 'initialisaton', 'Initializations', 'INITIALIZATION']

@pytest.fixture(scope='module')
def page(site, browser):
    "The index, with everything that a query needs."
    page, complaints = open_page(browser, (site/'index.html').as_uri())
    page.focus('.sidebar-search')
    page.evaluate('Search.load()')
    yield page
    assert complaints == []
    page.close()

OPTIONS = "as => as.map(a => a.getAttribute('href').replace('./', '').replace('.html', ''))"

def found(page, query):
    "The places that stand in the list once the query is typed in the sidebar's box."
    page.fill('.sidebar-search', query)
    return page.eval_on_selector_all('.search-list:not([hidden]) a:not(.search-all)', OPTIONS)

def exists(site, place):
    name, _, anchor = place.partition('#')
    path = site/f'{name}.html'
    return path.exists() and (
        not anchor or f'id="{anchor}"' in unescape(path.read_text(encoding='utf-8')))

@pytest.mark.parametrize('query', QUERIES)
def test_query_leads_to_the_right_place_first(site, page, query):
    right = QUERIES[query].split()
    assert all(exists(site, place) for place in right)
    assert found(page, query)[:1] in [[place] for place in right]

@pytest.mark.parametrize('name', NAMES)
def test_name_leads_to_the_library_first(page, name):
    first = found(page, name)[0]
    assert re.match('api/|05a_init$', first), first
    assert name.lower() in page.inner_text('.search-list a >> nth=0').lower()

def test_your_own_model_is_calibrated_in_the_library(page):
    assert re.match('api/calibrate(#ini-lsuv)?$', found(page, 'calibrate my own model')[0])

def test_spellings_and_slips_lead_to_one_place(page):
    assert len({tuple(found(page, query)) for query in SAME}) == 1
    assert found(page, 'naïve hõoks') == found(page, 'naive hooks')
    assert found(page, 'xaiver') == found(page, 'xavier')
    found(page, 'xaiver')
    assert 'Nothing says “xaiver”. For “xavier”' in page.text_content('.search-said')

def test_half_a_word_is_enough(page):
    assert found(page, 'isom')[0] == '11_isometry'
    assert found(page, 'receptive fi')[0] == 'glossary#term-receptive-field'

def test_other_words_of_the_table_lead_somewhere(page):
    "Each phrase that stands for another is said somewhere, whole."
    lost = page.evaluate('''() => Object.entries(SAME).flatMap(([said, meant]) => meant.split(', '))
        .filter(meant => !Search.find(meant)[0]?.all)''')
    assert lost == []

def test_unknown_words_find_nothing(page):
    assert found(page, 'qqqzzz') == []
    assert 'Nothing found' in page.text_content('.search-said')
    assert found(page, '<img src=x onerror=alert(1)>') is not None    # text, not markup
    assert page.locator('.search-list img').count() == 0

# ---- the index -------------------------------------------------------------------------------

def index_of(site):
    text = (site/'searchindex.js').read_text(encoding='utf-8')
    return dict(json.loads(text.removeprefix('Search.setIndex(').removesuffix(')')))

def test_index_has_every_section_and_nothing_else(site):
    index = index_of(site)
    assert {*LESSONS, 'index', 'glossary', 'claims', 'library', 'explorer'} <= index.keys()
    for name, places in index.items():
        text = unescape((site/f'{name}.html').read_text(encoding='utf-8'))
        ids = set(re.findall(r'\bid="([^"]+)"', text))
        anchors = [anchor for anchor, *_ in places]
        assert anchors[0] == '' and set(anchors[1:]) <= ids, name
        sections = re.findall(r'<section[^>]* id="([^"]+)"', text)
        assert set(sections[1:]) <= set(anchors), name

def test_index_is_small_and_no_page_loads_it(site):
    assert (site/'searchindex.js').stat().st_size < 1_500_000
    for name in ('index', 'glossary', max(LESSONS), 'search'):
        text = (site/f'{name}.html').read_text(encoding='utf-8')
        scripts = re.findall(r'<script[^>]* src="([^"?]+)', text)
        assert '_static/search.js' in scripts
        assert not re.search('searchindex|find|data|searchtools|doctools', ' '.join(scripts))
    assert not (site/'_static'/'searchtools.js').exists()

def test_index_comes_when_the_box_is_turned_to(site, browser):
    page, asked = browser.new_page(), []
    page.on('request', lambda r: asked.append(r.url.rpartition('/')[2]))
    page.goto((site/'api'/'watch.html').as_uri())
    assert 'searchindex.js' not in asked
    page.fill('.sidebar-search', 'lsuv'); page.wait_for_selector('.search-list a')
    assert asked.count('searchindex.js') == 1
    assert page.get_attribute('.search-list a >> nth=0', 'href') == '../09_lsuv.html'
    page.close()

# ---- the keyboard, the page of results, the phone ---------------------------------------------

def test_keyboard(site, browser):
    page, complaints = open_page(browser, (site/'02_data.html').as_uri())
    box = page.locator('.sidebar-search')
    page.keyboard.press('/'); page.keyboard.type('why √5')
    page.wait_for_selector('.search-list a')
    assert box.input_value() == 'why √5' and box.get_attribute('aria-expanded') == 'true'
    options = page.locator('.search-list [role=option]')
    def active(): return box.get_attribute('aria-activedescendant')
    page.keyboard.press('ArrowDown'); assert active() == 'search-0'
    page.keyboard.press('ArrowDown'); assert active() == 'search-1'
    assert [options.nth(k).get_attribute('aria-selected') for k in range(3)] == [
        'false', 'true', 'false']
    page.keyboard.press('ArrowUp'); page.keyboard.press('ArrowUp'); assert active() is None
    page.keyboard.press('ArrowUp'); assert active() == f'search-{options.count() - 1}'
    page.keyboard.press('Escape')
    assert not page.is_visible('.search-list') and box.get_attribute('aria-expanded') == 'false'
    page.keyboard.press('ArrowDown'); page.wait_for_selector('.search-list a')
    page.keyboard.press('Escape'); page.keyboard.press('Escape')
    assert box.input_value() == '' and not box.evaluate('b => b === document.activeElement')
    page.keyboard.press('Control+k'); page.keyboard.type('lsuv')
    page.wait_for_selector('.search-list a')
    page.keyboard.press('ArrowDown'); page.keyboard.press('Enter')
    page.wait_for_url('**/09_lsuv.html')
    assert complaints == []
    page.close()

def test_a_slash_in_another_box_is_a_slash(site, browser):
    page, _ = open_page(browser, (site/f'{min(LESSONS)}.html').as_uri())
    page.locator('.guess input').first.focus(); page.keyboard.type('1/2')
    assert page.locator('.guess input').first.input_value() == '1/2'
    page.close()

def test_enter_opens_the_page_of_all_results(site, browser):
    page, complaints = open_page(browser, (site/'api'/'watch.html').as_uri())
    page.fill('.sidebar-search', 'first loss'); page.press('.sidebar-search', 'Enter')
    page.wait_for_selector('#search-results li')
    assert page.url.endswith('search.html?q=first%20loss')
    assert page.input_value('#search-words') == 'first loss'
    links = page.locator('#search-results li a')
    def first(): return links.first.get_attribute('href')
    assert links.count() > 8 and re.match(r'\./1[23]_.*#the-first-loss', first())
    marked = page.locator('#search-results mark').all_inner_texts()
    assert {'first', 'loss'} <= {m.lower() for m in marked}
    page.fill('#search-words', 'kaming')
    assert page.inner_text('#search-status').startswith('Nothing says “kaming”. For “kaiming”:')
    assert first() == './05_kaiming.html' and page.url.endswith('?q=kaming')
    page.fill('#search-words', 'qqqzzz')
    assert page.inner_text('#search-status').startswith('Nothing found') and links.count() == 0
    page.goto((site/'search.html').as_uri())
    assert page.evaluate('document.activeElement.id') == 'search-words' and complaints == []
    page.close()

def test_phone(site, browser):
    page, complaints = open_page(browser, (site/'05_kaiming.html').as_uri(), 'dark')
    for width, words in ((390, 'one rule, many names'), (320, 'forward and backward')):
        page.set_viewport_size(dict(width=width, height=700))
        page.click('.search-open'); page.keyboard.type(words)
        page.wait_for_selector('.search-list a')
        box = page.locator('.search-list').bounding_box()
        assert box['x'] >= 0 and box['x'] + box['width'] <= width
        assert box['y'] + box['height'] <= 700
        page.locator('.search-list a').first.click()
        page.wait_for_url('**/05_kaiming.html#' + words.replace(', ', '-').replace(' ', '-'))
        assert not page.is_visible('.search-list') and not page.is_checked('#__navigation')
        assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    assert complaints == []
    page.close()

@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_list_can_be_read_by_everybody(site, browser, theme):
    page, complaints = open_page(browser, (site/'genindex.html').as_uri(), theme)
    page.fill('.sidebar-search', 'dead units'); page.wait_for_selector('.search-list a')
    page.press('.sidebar-search', 'ArrowDown')
    page.evaluate("document.querySelector('article').replaceChildren()")   # test_page sees to it
    assert barriers(page) == [] and complaints == []
    page.close()

# ---- planted faults --------------------------------------------------------------------------

@pytest.fixture
def spoilt(site, tmp_path, browser):
    "A function that opens a copy of what searching needs in which one file was changed."
    def spoil(name, change):
        for f in ('index.html', 'searchindex.js'): shutil.copy(site/f, tmp_path)
        shutil.copytree(site/'_static', tmp_path/'_static', dirs_exist_ok=True)
        before = (tmp_path/name).read_text(encoding='utf-8')
        after = change(before)
        assert after != before
        (tmp_path/name).write_text(after, encoding='utf-8')
        page = browser.new_page()
        page.goto((tmp_path/'index.html').as_uri())
        page.focus('.sidebar-search')
        return page
    return spoil

def without_sections(text):
    index = json.loads(text.removeprefix('Search.setIndex(').removesuffix(')'))
    return f'Search.setIndex({json.dumps([(name, places[:1]) for name, places in index])})'

JS = '_static/find.js'
@pytest.mark.parametrize('name, change, lost', [
    (JS, lambda s: s.replace("'glorot': 'xavier', ", ''), ['glorot']),
    (JS, lambda s: s.replace("'edge of chaos': 'order or chaos', ", ''), ['edge of chaos']),
    (JS, lambda s: s.replace(", 'sqrt$1')", ", '$&')"), ['why sqrt 5']),
    (JS, lambda s: s.replace('query = corrected(query);', ''), ['kaming']),
    (JS, lambda s: s.replace('anchor ? 3 : 4.5', '.1'), ['lsuv', 'kaiming']),
    ('searchindex.js', without_sections, ['edge of chaos', 'dying relu', 'fan in', 'first loss'])])
def test_planted_faults_are_seen(site, spoilt, name, change, lost):
    page = spoilt(name, change)
    page.evaluate('Search.load()')
    for query in lost:
        assert found(page, query)[:1] not in [[place] for place in QUERIES[query].split()], query
    page.close()

def test_an_index_that_is_missing_is_said_to_be(spoilt):
    page = spoilt('index.html', lambda s: s.replace('_root="./"', '_root="./no/"'))
    page.fill('.sidebar-search', 'lsuv')
    page.wait_for_function(
        "document.querySelector('.search-said').textContent.includes('could not be loaded')")
    page.close()
