// A reader guesses before the answer is shown. Without this script everything is there to be read.
// What follows a guess in its section is hidden until a guess was typed, or asked for; guesses are
// kept in the browser. The distances are those of `Guess` in initnotes.report.
addEventListener('DOMContentLoaded', () => {
  const page = location.pathname.split('/').pop(), key = what => `initnotes ${page} ${what}`;
  const kept = {
    get(k) { try { return localStorage.getItem(k); } catch { return null; } },
    set(k, v) { try { localStorage.setItem(k, v); } catch { /* a private window keeps nothing */ } } };
  const digits = x => Array.isArray(x) ? x.map(digits).join(', ') : typeof x === 'string' ? x : String(+x.toPrecision(4));

  function factor(guess, measured) {
    if (Array.isArray(measured)) {
      const each = guess.map((g, k) => factor(g, measured[k]));
      return each.some(isNaN) ? NaN : Math.max(...each); }
    if (guess === measured) return 1;
    return guess*measured <= 0 ? NaN : Math.max(guess/measured, measured/guess); }

  function parse(text, {kind, n}) {   // a guess of this kind, or null
    if (kind === 'choice') return text;
    const found = text.replaceAll('−', '-').split(/[\s;,]+/).filter(Boolean).map(Number);
    if (found.length !== (kind === 'number' ? 1 : n) || !found.every(Number.isFinite)) return null;
    return kind === 'number' ? found[0] : found; }

  function verdict(guess, asked) {
    const {kind, measured, theory, se} = asked;
    const right = digits(measured) + (theory == null ? '' : ` (theory ${digits(theory)})`);
    if (guess === null) return `Measured: ${right}.`;
    if (kind === 'choice')
      return guess.toLowerCase() === measured.toLowerCase() ? `Right: ${right}.` : `You said ${guess}; measured: ${right}.`;
    const f = factor(guess, measured);
    const off = isNaN(f) ? 'another sign, or 0' : `${kind === 'sketch' ? 'at worst ' : ''}a factor of ${+f.toPrecision(3)}`;
    const errors = se && kind === 'number' ? `, ${+(Math.abs(guess - measured)/se).toPrecision(3)} standard errors off` : '';
    return `You guessed ${digits(guess)}; measured: ${right}: ${off}${errors}.`; }

  const all = [];
  const showAll = () => kept.get('initnotes show all') === 'yes';

  function update() {
    for (const q of all) for (const box of q.hides) box.hidden = false;
    for (const q of all) if (!q.open && !showAll()) for (const box of q.hides) box.hidden = true;
    const made = all.filter(q => q.guess != null), numbers = made.filter(q => q.asked.kind !== 'choice');
    const near = numbers.filter(q => factor(q.guess, q.asked.measured) <= 2).length;
    const right = made.filter(q => q.asked.kind === 'choice' && verdict(q.guess, q.asked).startsWith('Right')).length;
    for (const sum of document.querySelectorAll('.guess-sum'))
      sum.textContent = `Your guesses: ${made.length} of ${all.length} made`
        + (numbers.length ? `, ${near} of ${numbers.length} numbers within a factor of 2` : '')
        + (made.length > numbers.length ? `, ${right} of ${made.length - numbers.length} choices right` : '') + '.'; }

  function build(box, k) {
    const asked = JSON.parse(box.dataset.asked), form = document.createElement('form');
    const q = {asked, open: false, guess: null, hides: []}, id = `guess-${k}`;
    const hint = {number: 'a number', sketch: `${asked.n} numbers`, choice: ''}[asked.kind];
    const field = asked.kind === 'choice'
      ? `<select id="${id}">${asked.choices.map(c => `<option>${c}</option>`).join('')}</select>`
      : `<input id="${id}" inputmode="text" autocomplete="off" placeholder="${hint}">`;
    form.innerHTML = `<label for="${id}">Your guess</label> ${field} <button>Compare</button> `
      + '<button type="button">Just show me</button><p role="status"></p>';
    const [, show] = form.querySelectorAll('button'), said = form.querySelector('p'), input = form.querySelector(`#${id}`);
    const reveal = guess => { q.open = true; q.guess = guess; said.textContent = verdict(guess, asked); update(); };
    form.addEventListener('submit', e => {
      e.preventDefault();
      const guess = parse(input.value, asked);
      if (guess === null) { said.textContent = `Please type ${hint}, such as ${asked.kind === 'number' ? '0.5' : '1, 0.5, 0.25'}.`; return; }
      kept.set(key(asked.what), input.value); reveal(guess); });
    show.addEventListener('click', () => { kept.set(key(asked.what), ''); reveal(null); });
    // The measuring cell shows its code; its output, and what follows in the section, wait.
    let next = box.nextElementSibling;
    const output = next?.querySelectorAll(':scope > .cell_output');
    if (output?.length) { q.hides.push(...output); next = next.nextElementSibling; }
    for (; next; next = next.nextElementSibling) q.hides.push(next);
    box.append(form); all.push(q);
    const before = kept.get(key(asked.what));
    if (before !== null) {
      const guess = before === '' ? null : parse(before, asked);
      if (asked.kind !== 'choice' || before) input.value = before;
      reveal(guess); } }

  const boxes = document.querySelectorAll('.guess');
  if (!boxes.length) return;
  boxes.forEach(build);
  const line = document.querySelector('.lesson-links'), label = document.createElement('label');
  label.className = 'show-all';
  label.innerHTML = '<input type="checkbox"> show all answers';
  const box = label.firstChild;
  box.checked = showAll();
  box.addEventListener('change', () => { kept.set('initnotes show all', box.checked ? 'yes' : 'no'); update(); });
  line?.after(label);
  const sum = document.createElement('p');
  sum.className = 'guess-sum';
  document.querySelector('#what-held')?.append(sum);
  update();
  // An address that leads into a hidden part opens it.
  const arrive = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target || !target.closest('[hidden]')) return;
    for (const q of all) if (q.hides.some(b => b.contains(target))) q.open = true;
    update(); target.scrollIntoView(); };
  addEventListener('hashchange', arrive); arrive();
});
