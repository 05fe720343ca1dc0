/**
 * The gallery: a list of buttons, one for each picture, of which Tab reaches one and the arrow keys the others.
 *
 * Pictures stream in while a visitor clicks, so tiles are updated in place: neither the selection, nor the focus, nor
 * an image that is loaded already is lost. Names and labels come from users and are only ever set as text.
 */

/**
 * One picture, as `gallery_tiles` in space/components.py describes it.
 * @typedef {object} Tile
 * @property {number} index of the picture among all of the visit
 * @property {'' | 'unknown' | 'error'} kind
 * @property {string} src URL of the preview, '' if the file could not be read
 * @property {string} name of the file
 * @property {string} label
 * @property {string} detail the label's probability, or why the file could not be read
 */

/**
 * What gradio hands to a component's script.
 * @typedef {object} Component
 * @property {HTMLElement} element
 * @property {Record<string, any>} props
 * @property {(event: string, data?: object) => void} trigger calls the Python listeners of an event
 * @property {(prop: string, callback: () => void) => void} watch calls back when Python has changed a property
 */

/**
 * Where a key moves the focus to in a grid that is filled row by row.
 * @param {string} key `KeyboardEvent.key`
 * @param {number} from position of the tile that has the focus
 * @param {number} count of tiles
 * @param {number} columns of the grid
 * @returns {number | undefined} the new position, undefined if the key doesn't lead to a tile
 */
export function nextPosition(key, from, count, columns) {
  const to = {
    ArrowRight: from + 1,
    ArrowLeft: from - 1,
    ArrowDown: from + columns,
    ArrowUp: from - columns,
    Home: 0,
    End: count - 1,
  }[key];
  return to >= 0 && to < count ? to : undefined;
}

/**
 * Shows `props.value`, a list of `Tile`, in the component's list, and marks the one whose index is `props.selected`.
 *
 * Triggers `click` with `{index, at}`: the picture's index, and the time in milliseconds of the page's clock, because
 * clicks may reach the server in another order.
 * @param {Component} component
 */
export function mount({ element, props, trigger, watch }) {
  const list = element.querySelector('ul');
  /** @type {string[]} */
  const shown = []; // each button's tile as JSON
  let selected = 0;

  const buttons = () => [...list.querySelectorAll('button')];

  function mark() {
    const all = buttons();
    const entry = all.find(button => Number(button.dataset.index) === selected) ?? all[0];
    for (const button of all) {
      button.setAttribute('aria-pressed', String(Number(button.dataset.index) === selected));
      button.tabIndex = button === entry ? 0 : -1;
    }
  }

  function select() {
    if (props.selected >= 0) selected = props.selected;
    mark();
  }

  function render() {
    const tiles = /** @type {Tile[]} */ (props.value);
    while (list.children.length > tiles.length) list.lastElementChild.remove();
    shown.length = list.children.length;
    tiles.forEach((tile, position) => {
      const json = JSON.stringify(tile);
      if (shown[position] === json) return;
      shown[position] = json;
      if (!list.children[position]) list.append(newItem());
      fill(list.children[position].querySelector('button'), tile);
    });
    element.style.setProperty('--count', String(tiles.length)); // page.css derives the rows and columns from it
    mark();
  }

  watch('selected', select);
  watch('value', render);
  element.addEventListener('click', event => {
    const button = /** @type {Element} */ (event.target).closest('button');
    if (!button) return;
    selected = Number(button.dataset.index);
    mark();
    trigger('click', { index: selected, at: event.timeStamp });
  });
  element.addEventListener('keydown', event => {
    const all = buttons();
    const from = all.indexOf(/** @type {HTMLButtonElement} */ (document.activeElement));
    const columns = all.filter(button => button.offsetTop === all[0].offsetTop).length;
    const to = from < 0 ? undefined : nextPosition(event.key, from, all.length, columns);
    if (to === undefined) return;
    event.preventDefault();
    all[from].tabIndex = -1;
    all[to].tabIndex = 0;
    all[to].focus();
  });
  render();
  select();
}

function newItem() {
  const item = document.createElement('li');
  const button = document.createElement('button');
  button.type = 'button';
  item.append(button);
  return item;
}

/**
 * Makes a button show a tile. An image that it shows already stays, and is not loaded again.
 * @param {HTMLButtonElement} button
 * @param {Tile} tile
 */
function fill(button, tile) {
  const caption = newText('span', 'said');
  caption.append(newText('b', '', tile.label), ' ', newText('span', '', tile.detail));
  button.className = `cell ${tile.kind}`;
  button.dataset.index = String(tile.index);
  button.title = tile.name;
  button.replaceChildren(picture(button, tile), caption, newText('span', 'sr', `, ${tile.name}`));
}

/**
 * @param {HTMLButtonElement} button
 * @param {Tile} tile
 */
function picture(button, tile) {
  if (!tile.src) {
    const broken = newText('span', 'broken', '✕');
    broken.setAttribute('aria-hidden', 'true');
    return broken;
  }
  const current = button.querySelector('img');
  if (current?.getAttribute('src') === tile.src) return current;
  const image = new Image();
  image.loading = 'lazy'; // before the source is set
  image.alt = '';
  image.src = tile.src;
  return image;
}

/**
 * @param {string} tag
 * @param {string} className
 * @param {string} [text]
 */
function newText(tag, className, text = '') {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}
