// What the theme leaves out for readers without a mouse or without a network.

// A box that scrolls can be scrolled with the arrow keys only if the focus can enter it.
const BOXES =
  ".pst-scrollable-table-container, div.math, mjx-container, .bd-article pre, .cell_output .output";

function letFocusIntoScrollingBoxes() {
  for (const box of document.querySelectorAll(BOXES)) {
    const scrolls = ["auto", "scroll"].includes(getComputedStyle(box).overflowX);
    if (scrolls && box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

window.addEventListener("load", () => {
  letFocusIntoScrollingBoxes();
  window.MathJax?.startup?.promise?.then(letFocusIntoScrollingBoxes);
  for (const details of document.querySelectorAll("details"))
    details.addEventListener("toggle", letFocusIntoScrollingBoxes);
});
window.addEventListener("resize", letFocusIntoScrollingBoxes);

// A page on disk may not read other pages, so that search shows titles without an excerpt there.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
