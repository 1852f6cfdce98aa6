// Search shows excerpts of pages, which a browser may not fetch from a disk: there, titles must do.
if (location.protocol === 'file:') DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
