// Search shows excerpts of pages, which a browser may not fetch from a disk: there, titles must do.
if (location.protocol === 'file:') DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
// What scrolls by itself must be reachable with the keyboard.
addEventListener('load', () => {
  for (const box of document.querySelectorAll('article pre, article .table-wrapper, article div.math, article .cell_output'))
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
});
