// What scrolls by itself must be reachable with the keyboard.
addEventListener('load', () => {
  for (const box of document.querySelectorAll('article pre, article .table-wrapper, article div.math, article .cell_output'))
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
});
// The sidebar shows the page, and then the section, that is read; a phone's drawer closes when a section is chosen.
addEventListener('DOMContentLoaded', () => {
  const box = document.querySelector('.sidebar-scroll'), drawer = document.querySelector('#__navigation');
  const show = item => {
    const a = item.querySelector('a').getBoundingClientRect(), b = box.getBoundingClientRect();
    if (a.top < b.top || a.bottom > b.bottom) box.scrollTop += a.top - b.top - b.height/3; };
  const here = box.querySelector('.current-page');
  if (here) show(here);
  box.addEventListener('gumshoeActivate', e => show(e.target));
  box.addEventListener('click', e => { if (e.target.hash) drawer.checked = false; });
  addEventListener('keydown', e => { if (e.key === 'Escape') drawer.checked = false; });
});
// Paper shows what is folded.
let opened = [];
addEventListener('beforeprint', () => {
  opened = [...document.querySelectorAll('article details:not([open])')];
  for (const d of opened) d.open = true; });
addEventListener('afterprint', () => { for (const d of opened) d.open = false; });
// Where a lesson invites to the explorer, it is on the page itself, as high as it says that it is.
addEventListener('DOMContentLoaded', () => {
  for (const a of document.querySelectorAll('p.explorer > a')) {
    const frame = document.createElement('iframe');
    Object.assign(frame, {className: 'explorer', loading: 'lazy', title: a.textContent, src: a.getAttribute('href') + '&embed'});
    a.parentNode.replaceWith(frame);
    addEventListener('message', e => {
      if (e.source === frame.contentWindow && e.data?.explorer > 0) frame.style.height = `${e.data.explorer}px`; }); }
});
// An address that leads to a section with one folded part opens it.
const unfold = () => {
  const parts = location.hash.length > 1 ? document.getElementById(decodeURIComponent(location.hash.slice(1)))?.querySelectorAll('details') : [];
  if (parts?.length === 1) parts[0].open = true; };
addEventListener('DOMContentLoaded', unfold);
addEventListener('hashchange', unfold);
