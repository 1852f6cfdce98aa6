// What scrolls by itself must be reachable with the keyboard.
addEventListener('load', () => {
  for (const box of document.querySelectorAll('article pre, article .table-wrapper, article div.math, article .cell_output'))
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
});
