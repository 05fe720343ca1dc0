/** The detail view. */

/** Scrolls the detail view into the window, after a picture was selected in the table, which is below it. */
export function scrollIntoWindow() {
  document.querySelector('#detail').scrollIntoView({ block: 'nearest', behavior: 'smooth' });
}
