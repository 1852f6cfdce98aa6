// The search boxes. What finds, and what is found, is loaded when somebody turns to one of them: find.js, and the index of places
// (searchindex.js, which tools/search.py makes). They are scripts, since a page that lies on a disk may not fetch anything.
'use strict';
const Search = {};
(() => {
  const root = document.documentElement.dataset.content_root ?? './';
  const address = ({page, anchor}) => `${root}${page}.html` + (anchor && '#' + anchor);
  const script = name => new Promise((resolve, reject) => document.head.append(Object.assign(
    document.createElement('script'), {src: root + name, onload: resolve, onerror: reject})));

  let loaded;
  Search.load = () => loaded ??= script('_static/language_data.js').then(() => script('_static/find.js')).then(() => script('searchindex.js'));

  async function look(query, status) {      // what is found, or null; the status says how much
    try { await Search.load(); } catch { status.textContent = 'The index of this site could not be loaded.'; return null; }
    const hits = Search.find(query), n = hits.length;
    const other = n && hits.query !== query ? `Nothing says “${query.trim()}”. For “${hits.query.trim()}”: ` : '';
    status.textContent = other + (n === 0 ? 'Nothing found. Try fewer words, or other ones.' : n === 1 ? 'one place.'
                                  : `${n < 60 ? n : '60 and more'} places.`);
    return hits; }

  const make = (tag, cls, ...inside) => {
    const element = document.createElement(tag);
    element.className = cls; element.append(...inside);
    return element; };

  const set = (element, attributes) => Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));

  const entry = hit => [
    make('span', 'search-place', hit.heading), ' ', make('span', 'search-page-of', hit.anchor ? hit.title : hit.kind), ' ',
    make('span', 'search-excerpt', ...Search.excerpt(hit).map(piece => Array.isArray(piece) ? make('mark', '', ...piece) : piece))];

  function box(input) {     // the sidebar's: a combobox, with a list of places below it
    const list = make('div', 'search-list'), status = make('p', 'search-said');
    Object.assign(list, {id: 'search-list', hidden: true});
    set(list, {role: 'listbox', 'aria-label': 'Places'}); set(status, {role: 'status'});
    set(input, {role: 'combobox', 'aria-controls': list.id, 'aria-expanded': 'false', 'aria-autocomplete': 'list', autocomplete: 'off',
                autocapitalize: 'off', spellcheck: 'false', 'aria-keyshortcuts': '/ Control+K', placeholder: 'Search  ( / )'});
    input.form.querySelectorAll('[type=hidden]').forEach(x => x.remove());
    document.body.append(list, status);
    let active = -1;

    function close() {
      list.hidden = true; active = -1;
      input.setAttribute('aria-expanded', 'false'); input.removeAttribute('aria-activedescendant'); }

    function choose(k) {
      list.children[active]?.setAttribute('aria-selected', 'false');
      active = (k + list.children.length + 1) % (list.children.length + 1);
      if (active === list.children.length) active = -1;     // back in the box
      const option = list.children[active];
      option?.setAttribute('aria-selected', 'true'); option?.scrollIntoView({block: 'nearest'});
      if (option) input.setAttribute('aria-activedescendant', option.id);
      else input.removeAttribute('aria-activedescendant'); }

    async function show() {
      const query = input.value;
      if (query.trim().length < 2 && !/[^\x00-\x7f]/.test(query)) { status.textContent = ''; return close(); }
      const hits = await look(query, status);
      if (!hits || input.value !== query || document.activeElement !== input) return;
      const links = hits.slice(0, 8).map(hit => Object.assign(make('a', '', ...entry(hit)), {href: address(hit)}));
      if (hits.length > 8)
        links.push(Object.assign(make('a', 'search-all', 'All places'), {href: `${root}search.html?q=${encodeURIComponent(query.trim())}`}));
      links.forEach((a, k) => set(a, {id: `search-${k}`, tabindex: -1, role: 'option', 'aria-selected': 'false'}));
      list.replaceChildren(...links);
      close();
      if (!links.length) return;
      const {left, bottom} = input.getBoundingClientRect();
      list.style.left = `${Math.max(8, left)}px`; list.style.top = `${bottom + 4}px`;
      list.hidden = false; input.setAttribute('aria-expanded', 'true'); list.scrollTop = 0; }

    input.addEventListener('focus', () => { Search.load().catch(() => {}); show(); });
    input.addEventListener('input', show);
    input.addEventListener('blur', close);
    list.addEventListener('pointerdown', e => e.preventDefault());      // the box keeps the focus until the click is done
    list.addEventListener('click', () => { close(); input.blur(); drawer(false); });
    addEventListener('resize', close);
    input.addEventListener('keydown', e => {
      const step = {ArrowDown: 1, ArrowUp: -1}[e.key];
      if (step && list.hidden) show();
      else if (step) choose(active < 0 && step < 0 ? list.children.length - 1 : active + step);
      else if (e.key === 'Enter' && active >= 0) list.children[active].click();
      else if (e.key === 'Escape' && !list.hidden) close();
      else if (e.key === 'Escape') { input.value = ''; input.blur(); drawer(false); }
      else return;
      e.preventDefault(); }); }

  function page(input) {    // of search.html
    const list = document.getElementById('search-results'), status = document.getElementById('search-status');
    async function show() {
      const query = input.value.trim();
      try { history.replaceState(null, '', query ? `?q=${encodeURIComponent(query)}` : location.pathname); } catch { /* not on every disk */ }
      const hits = query ? await look(input.value, status) : [];
      if (!query) status.textContent = '';
      if (hits && input.value.trim() === query)
        list.replaceChildren(...hits.map(hit => {
          const [place, ...rest] = entry(hit);
          return make('li', '', Object.assign(make('a', '', place), {href: address(hit)}), ...rest); })); }
    input.value = new URLSearchParams(location.search).get('q') ?? '';
    input.form.addEventListener('submit', e => { e.preventDefault(); show(); });
    input.addEventListener('input', show);
    if (!input.value) input.focus();
    show(); }

  function drawer(open) {       // a phone's menu, in which the box is
    const menu = document.getElementById('__navigation');
    if (menu) menu.checked = open; }

  addEventListener('DOMContentLoaded', () => {
    const side = document.querySelector('.sidebar-search'), own = document.getElementById('search-words');
    if (side) box(side);
    if (own) page(own);
    const go = () => {
      const input = own ?? side;
      if (input === side && side.getBoundingClientRect().right <= 0) drawer(true);
      input?.focus({preventScroll: input === side}); input?.select(); };
    addEventListener('keydown', e => {
      const typing = e.target.closest?.('input, textarea, select, [contenteditable]');
      const slash = e.key === '/' && !typing && !e.ctrlKey && !e.metaKey && !e.altKey;
      if (!slash && !(e.key.toLowerCase() === 'k' && (e.ctrlKey || e.metaKey))) return;
      e.preventDefault(); go(); });
    const button = make('button', 'search-open');
    button.setAttribute('aria-label', 'Search');
    button.addEventListener('click', go);
    document.querySelector('.mobile-header .header-right')?.prepend(button); });
})();
