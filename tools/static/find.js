// What a search finds, and in which order: people's words, and the places of the index that searchindex.js gives to setIndex.
// Loaded by search.js when somebody turns to a search box, after Sphinx's stop words and stemmer (language_data.js).
'use strict';
// What people say, and what the course calls it: one phrase, or several between commas. Both are looked for;
// of three words or more, what the course calls it alone.
const SAME = {
  'dying relu': 'dead unit', 'dead relu': 'dead unit', 'dead neuron': 'dead unit', 'neuron': 'unit', 'silent': 'dead',
  'nan': 'not finite, diverged', 'inf': 'not finite', 'infinity': 'not finite', 'overflow': 'not finite',
  'vanish': 'deep mlp does not learn, shrinks', 'vanishing gradient': 'deep mlp does not learn, gradient shrinks',
  'explode': 'deep mlp does not learn, grows, diverged', 'blow up': 'grows, diverged', 'diverge': 'diverged',
  'exploding gradient': 'deep mlp does not learn, gradient grows', 'not learning': 'deep mlp does not learn',
  'does not train': 'deep mlp does not learn', 'not converge': 'deep mlp does not learn', 'loss stuck': 'deep mlp does not learn',
  'loss does not decrease': 'deep mlp does not learn', 'network': 'net', 'swish': 'silu',
  'outputs the same': 'alike', 'outputs are the same': 'alike', 'same output': 'alike', 'initial loss': 'first loss', 'loss at init': 'first loss',
  'init': 'initialization, start', 'initialization': 'init_, which start for which net', 'default init': 'why √5',
  'gain of': 'which start for which net', 'gain for': 'which start for which net', 'init for': 'which start for which net',
  'cheat sheet': 'which start for which net', 'he init': 'kaiming', 'he initialization': 'kaiming', 'he normal': 'kaiming_normal_',
  'msra': 'kaiming', 'glorot': 'xavier', 'data dependent init': 'lsuv', 'reproducible': 'seed',
  'calibrate my model': 'calibrate', 'calibrate my own model': 'calibrate',
  'all zeros': 'then why random', 'weights zero': 'then why random', 'zero init': 'then why random, zero', 'fixup': 'residual zero',
  'symmetry': 'symmetry breaking', 'root of five': '√5', 'square root of 5': '√5', 'square root of five': '√5', 'sqrt five': '√5',
  'edge of chaos': 'order or chaos', 'mean field': 'order or chaos', 'mup': 'width learning rate', 'playground': 'explorer',
  'learning rate finder': 'which learning rate', 'lr finder': 'which learning rate', 'lr': 'learning rate',
  'skip connection': 'residual', 'resnet': 'residual', 'transformer': 'gpt', 'llm': 'gpt', 'language model': 'gpt',
  'tied embedding': 'gpt tied embedding, tied weights', 'weight tying': 'gpt tied weights, tied weights',
  'batchnorm': 'batch norm, batch normalization', 'batch norm': 'batchnorm', 'layernorm': 'layer norm', 'layer norm': 'layernorm',
  'transposed convolution': 'decoder', 'convtranspose': 'decoder, transposed convolution', 'unet': 'u-net, decoder',
  'deconvolution': 'decoder, transposed convolution', 'autoencoder': 'decoder', 'upsampling': 'decoder',
  'torchrun': 'several gpus', 'fsdp': 'several gpus', 'ddp': 'several gpus', 'deepspeed': 'several gpus', 'distributed': 'several gpus',
  'multi gpu': 'several gpus', 'multiple gpus': 'several gpus', 'custom training loop': 'my own training loop',
  'unit test': 'test in my repository, assert_healthy', 'pytest': 'test in my repository, assert_healthy' };

(() => {
  // ---- words ---------------------------------------------------------------------------------
  const WORD = /(?<![\p{L}\p{N}_])(?:√|sqrt|root)[\s(]*\d+|√\d+|[\p{L}\p{N}_]+/giu;
  const known = new Map();      // a word as it stands in a text -> what word() says of it
  let stemmer;

  function term(word) {     // one for all forms of a word: √5 is sqrt(5), -ise is -ize, and Sphinx's stemmer knows the rest
    word = word.replace(/^(?:√|sqrt|root)[\s(]*(\d+)$/, 'sqrt$1');
    return /[\d_]/.test(word) ? word : stemmer.stemWord(
      word.replace(/^(.{3,})is(e[drs]?|ing|ations?)$/, '$1iz$2').replace(/^(.{3,})our$/, '$1or')); }

  function word(text) {     // how it is written (naïve is naive), its term, and the terms of its parts: of nn_Names and CamelCase
    if (known.has(text)) return known.get(text);
    const raw = text.normalize('NFKD').replace(/\p{M}/gu, '').toLowerCase(), stop = stopwords.has(raw);
    const parts = text.replace(/(\p{Ll})(\p{Lu})/gu, '$1_$2').split('_').filter(Boolean).map(p => p.toLowerCase());
    known.set(text, {raw, term: term(raw), stop, parts: parts[0] === raw ? [] : parts.filter(p => !stopwords.has(p)).map(term)});
    return known.get(text); }

  const terms = text => Array.from(text.matchAll(WORD), m => ({...word(m[0]), at: m.index, end: m.index + m[0].length}));
  const plain = text => ' ' + terms(text).map(t => t.term).join(' ') + ' ';

  function near(a, b, most) {   // are they at most so many letters apart? Two that changed places are one.
    if (Math.abs(a.length - b.length) > most) return false;
    let rows = [[], [], Array.from({length: b.length + 1}, (_, j) => j)];
    for (let i = 1; i <= a.length; i++) {
      rows = [rows[1], rows[2], [i]];
      const [before, last, row] = rows;
      for (let j = 1; j <= b.length; j++) {
        row[j] = Math.min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] !== b[j - 1]));
        if (a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1] && i > 1) row[j] = Math.min(row[j], before[j - 2] + 1); } }
    return rows[2][b.length] <= most; }

  // ---- the index -----------------------------------------------------------------------------
  function names({page, anchor, heading}) {       // "init_, InitReport" of the library are two, and so are "Kaiming: which scale?"
    return heading.replace(/^\d+[a-z]? · /, '').split(/^(library|api|glossary)/.test(page) ? ', ' : anchor ? /$/ : ': '); }

  const places = [], index = new Map();     // index: term -> Map(place -> how much it says there, from 0 to 5 or so)
  const KINDS = [       // pages, what their places are worth, and what they are called
    [/^howto\//, 1.5, 'How-to'], [/^explorer/, 1.2, 'To play with'], [/^\d\d_/, 1.2, 'Lesson'], [/^\d\d[a-z]_/, .7, 'Workshop'],
    [/^(library|api\/)/, .9, 'Library'], [/^glossary/, .55, 'Glossary'], [/^claims/, .4, 'To look up'],
    [/^references/, .7, 'To look up'], [/./, .8, 'The course']];
  const ASIDE = /^(exercises|solutions|what-held|where-to-read-on|(to-)?read-on)$/;
  let same, spellings;     // spellings: every word that is known, as it is written -> its term

  function setIndex(pages) {
    stemmer = new Stemmer();
    same = new Map(Object.entries(SAME).map(([said, meant]) => [plain(said).trim(), meant.split(', ')]));
    for (const [page, entries] of pages) for (const [anchor, heading, text, code] of entries) {
      const [, weight, kind] = KINDS.find(([pattern]) => pattern.test(page)), title = entries[0][1], aside = ASIDE.test(anchor) ? .5 : 1;
      const place = {page, anchor, heading, title, text, code, weight: weight*aside, kind};
      places.push({...place, names: [heading, ...names(place)].map(plain)}); }
    const counts = places.map(count), mean = counts.reduce((sum, c) => sum + c.length, 0)/counts.length;
    spellings = new Map(Array.from(known.values(), w => [w.raw, w.term]));
    let top;                // a page says, a little, what its sections say
    counts.forEach(({words}, k) => {
      if (!places[k].anchor) top = words;
      else for (const [word, [, text]] of words) {
        if (!top.has(word)) top.set(word, [0, 0]);
        top.get(word)[1] += .1*text; } });
    counts.forEach(({words, length}, k) => {
      for (const [word, [heading, text]] of words) {
        if (!index.has(word)) index.set(word, new Map());
        index.get(word).set(k, heading + text/(text + .4 + .8*length/mean)); } });
    for (const found of index.values()) {   // what is rare says more
      const rarity = Math.log(1 + (places.length - found.size + .5)/(found.size + .5));
      for (const [k, x] of found) found.set(k, x*rarity); } }

  function count(place) {
    const {page, anchor, title, text, code} = place, words = new Map();
    const own = text => terms(text).filter(t => !t.stop).map(t => new Set([t.term, ...t.parts]));
    const of = word => words.get(word) ?? words.set(word, [0, 0]).get(word);
    function name(text, weight) {
      const found = own(text);
      for (const forms of found) for (const word of forms) of(word)[0] = Math.max(of(word)[0], weight/Math.sqrt(found.length)); }
    function say(text, weight) {
      const found = own(text);
      for (const forms of found) for (const word of forms) of(word)[1] += weight;
      return weight*found.length; }
    for (const part of names(place)) name(part, anchor ? 3 : 4.5);
    if (anchor) for (const part of names({page, heading: title})) name(part, .8);
    return {words, length: say(text, 1) + say(code, .3)}; }

  // ---- finding -------------------------------------------------------------------------------
  function lookup(word, open) {     // Map(place -> score); an open word, still being typed, stands for all that begin with it
    const found = new Map();
    const take = (term, weight) => index.get(term)?.forEach((x, k) => found.set(k, Math.max(found.get(k) ?? 0, weight*x)));
    take(word.term, 1);
    if (!found.size || open) for (const [raw, term] of spellings)
      if (raw !== word.raw && raw.startsWith(word.raw)) take(term, .2 + .6*word.raw.length/raw.length);
    return found; }

  function corrected(query) {       // a word that nobody knows is the known word that is nearest, and used most
    return query.replace(WORD, word => {
      const {raw, term} = terms(word)[0];
      if (raw.length < 4 || spellings.has(raw) || index.has(term) || [...spellings.keys()].some(w => w.startsWith(raw))) return word;
      for (const most of raw.length > 7 ? [1, 2] : [1]) {
        const close = [...spellings].filter(([w]) => w[0] === raw[0] && near(raw, w, most));
        const use = ([, term]) => index.get(term)?.size ?? 0;
        if (close.length) return close.reduce((a, b) => use(b) > use(a) ? b : a)[0]; }
      return word; }); }

  function groups(query) {      // what is asked, each word or phrase with what means the same: a list of lists of phrases of words
    const said = terms(query), all = said.every(t => t.stop), found = [];
    const phrase = (words, phrase) => Object.assign(words.filter(t => all || !t.stop), {phrase});
    for (let i = 0; i < said.length;) {
      let n = Math.min(4, said.length - i), meant;
      while (n && !(meant = same.get(said.slice(i, i + n).map(t => t.term).join(' ')))) n--;
      const own = said.slice(i, i += n || 1), group = n > 2 ? [] : [phrase(own, query.slice(own[0].at, own.at(-1).end))];
      for (const m of meant ?? []) group.push(phrase(terms(m), m));
      if (group.some(words => words.length)) found.push(group.filter(words => words.length)); }
    return found; }

  function find(query) {
    query = corrected(query);
    const asked = groups(query), open = /[\p{L}\p{N}_]$/u.test(query), scores = new Map(), marked = new Set(), memo = new Map();
    const look = (word, open) => memo.get(word.raw + open) ?? memo.set(word.raw + open, lookup(word, open)).get(word.raw + open);
    asked.forEach((group, g) => {
      const best = new Map();
      group.forEach((words, a) => {
        const maps = words.map((w, i) => look(w, open && a === 0 && g === asked.length - 1 && i === words.length - 1));
        words.forEach(w => marked.add(w.term));
        for (const k of maps[0].keys()) if (maps.every(m => m.has(k)))
          best.set(k, Math.max(best.get(k) ?? 0, (a ? .9 : 1)*maps.reduce((sum, m) => sum + m.get(k), 0))); });
      for (const [k, x] of best) {
        const [sum, n] = scores.get(k) ?? [0, 0];
        scores.set(k, [sum + x, n + 1]); } });
    const phrases = [query, ...asked.flatMap(group => group.map(words => words.phrase))].map(plain).filter(
      (p, i) => !i || p.trim().includes(' ') || asked.length === 1 && p !== ` ${asked[0][0][0].term} `);
    const rank = ([k, [sum, n]]) => {
      const place = places[k];
      let score = sum*(n/asked.length)**2*place.weight;
      if (place.names.includes(phrases[0]) && /\S[\s-]\S|_|\p{Ll}\p{Lu}/u.test(query.trim())) score *= 3;       // its name, in full
      else if (place.names.some(name => phrases.includes(name))) score *= 1.7;
      else if (place.names.some(name => phrases.some(p => name.includes(p)))) score *= 1.3;
      return {...place, score, all: n === asked.length}; };
    const found = [...scores].map(rank).sort((a, b) => b.score - a.score).slice(0, 60);
    for (const f of found.slice(0, 20)) if (phrases.some(p => p.trim().includes(' ') && plain(f.text).includes(p))) f.score *= 1.2;
    found.sort((a, b) => b.score - a.score);
    return Object.assign(found.map(f => ({...f, marked})), {query}); }

  function excerpt({text, marked}, size = 150) {     // where most of the words stand: pieces of text, [those] that were asked for in brackets
    const is = t => [t.term, ...t.parts].some(w => marked.has(w) || [...marked].some(m => m.length > 2 && w.startsWith(m)));
    const hits = terms(text).filter(t => !t.stop && is(t));
    const worth = h => new Set(hits.filter(o => o.at >= h.at && o.end < h.at + size).map(o => o.term)).size;
    const first = hits.reduce((best, h) => worth(h) > worth(best) ? h : best, hits[0]);
    let from = Math.max(0, (first?.at ?? 0) - 40), to = from + size;
    while (from && /\S/.test(text[from - 1])) from--;
    while (to < text.length && /\S/.test(text[to])) to++;
    const pieces = [from ? '… ' : ''];
    let at = from;
    for (const h of hits) if (h.at >= from && h.end <= to) {
      pieces.push(text.slice(at, h.at), [text.slice(h.at, h.end)]);
      at = h.end; }
    return [...pieces, text.slice(at, to) + (to < text.length ? ' …' : '')]; }

  Object.assign(Search, {setIndex, find, excerpt});
})();
