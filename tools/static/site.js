// Search shows excerpts of pages, which a browser may not fetch from a disk: there, titles must do.
if (location.protocol === 'file:') DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
// What scrolls by itself must be reachable with the keyboard.
addEventListener('load', () => {
  for (const box of document.querySelectorAll('article pre, article .table-wrapper, article div.math, article .cell_output'))
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
});
// Where a lesson invites to the explorer, it is on the page itself, as high as it says that it is.
addEventListener('DOMContentLoaded', () => {
  for (const a of document.querySelectorAll('p.explorer > a')) {
    const frame = document.createElement('iframe');
    Object.assign(frame, {className: 'explorer', loading: 'lazy', title: a.textContent, src: a.getAttribute('href') + '&embed'});
    a.parentNode.replaceWith(frame);
    addEventListener('message', e => {
      if (e.source === frame.contentWindow && e.data?.explorer > 0) frame.style.height = `${e.data.explorer}px`; }); }
});
