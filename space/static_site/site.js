/** The page: it takes pictures, hands them to the worker, and shows what comes back. */

import { csvRow, topLabels } from './scores.js';

/**
 * A picture and what is known of it.
 * @typedef {object} Picture
 * @property {string} name of the file
 * @property {HTMLElement} tile
 * @property {number[]} [probabilities]
 * @property {boolean | null} [known]
 * @property {string} [error] why the file could not be read
 */

const DEFAULT_TOP_K = 3;
const MAX_LISTED = 20; // labels that the header names
const MAX_TOP_K = 10;

/** @type {(id: string) => any} */
const element = id => document.getElementById(id);
const [files, gallery, progress, status, topK] = ['files', 'gallery', 'progress', 'status', 'top-k'].map(element);
/** @type {import('./worker.js').Model} */
let model;
/** @type {Worker} */
let worker;
let visit = newVisit(0);

/** @param {number} number */
function newVisit(number) {
  return {
    number, // counts how often the list was cleared
    /** @type {Picture[]} */
    pictures: [],
    done: 0,
    began: 0, // when the current pictures were added, in milliseconds of the page's clock
    doneBefore: 0, // pictures that were done by then
  };
}

/** Shows the model's facts, makes the page's controls work, and loads the model. */
async function start() {
  model = await (await fetch('model.json')).json();
  const { labels } = model;
  const named = labels.length > MAX_LISTED ? `one of ${labels.length.toLocaleString('en')} labels` : labels.join(', ');
  element('purpose').textContent = `What does your picture show: ${named}?`;
  element('facts').append(...model.facts.map(item));
  const most = Math.min(MAX_TOP_K, model.labels.length);
  topK.append(...Array.from({ length: most }, (_, i) => new Option(String(i + 1))));
  topK.value = String(Math.min(DEFAULT_TOP_K, most));
  topK.addEventListener('change', () => visit.pictures.forEach(show));
  files.addEventListener('change', () => add([...files.files]));
  element('clear').addEventListener('click', clear);
  element('csv').addEventListener('click', downloadCsv);
  const onlyUnknown = element('only-unknown');
  onlyUnknown.addEventListener('change', () => gallery.classList.toggle('only-unknown', onlyUnknown.checked));
  for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop']) {
    document.addEventListener(kind, event => {
      event.preventDefault(); // or the browser would show the picture in place of the page
      element('drop').classList.toggle('over', kind === 'dragenter' || kind === 'dragover');
    });
  }
  document.addEventListener('drop', event => add([...event.dataTransfer.files]));
  document.addEventListener('paste', event => add([...event.clipboardData.files]));
  worker = new Worker('worker.js', { type: 'module' });
  worker.onmessage = event => answered(event.data);
  worker.onerror = event => fail(event.message || 'this browser is too old');
}

/**
 * Lets a service worker keep copies of all that was loaded, so that the site works without a network from now on.
 * @param {string[]} byWorker what the worker has loaded
 */
async function keepCopies(byWorker) {
  if (!navigator.serviceWorker) return; // on a page without https
  await navigator.serviceWorker.register('offline.js');
  const { active } = await navigator.serviceWorker.ready;
  const byPage = performance.getEntriesByType('resource').map(each => each.name);
  active.postMessage([location.href, ...byPage, ...byWorker]);
}

/** @param {any} message of the worker */
function answered(message) {
  if (message.ready) {
    const { engine, threads, loaded } = message.ready;
    keepCopies(loaded).catch(() => {}); // a browser may refuse it, such as in private windows
    element('engine').textContent = engine === 'WebAssembly' ? `${engine}, threads: ${threads}` : engine;
    element('prompt').textContent = 'Drop pictures here, or click to choose';
    files.disabled = false;
  } else if (message.failed) {
    fail(message.failed);
  } else if (message.visit === visit.number) {
    receive(message);
  }
}

/** @param {string} reason */
function fail(reason) {
  files.disabled = true;
  element('prompt').textContent = 'The model does not work here';
  status.textContent = `The model does not work here (${reason}): load the page again, or use another browser.`;
  element('announcement').textContent = status.textContent;
}

/** @param {string} text */
function item(text) {
  const made = document.createElement('li');
  made.textContent = text;
  return made;
}

/** @param {File[]} chosen */
function add(chosen) {
  if (files.disabled || !chosen.length) return;
  const { number, pictures, done } = visit;
  if (done === pictures.length) [visit.began, visit.doneBefore] = [performance.now(), done];
  for (const file of chosen) {
    const tile = element('tile').content.cloneNode(true).firstElementChild;
    tile.querySelector('.file').textContent = file.name;
    tile.querySelector('.label').textContent = '…';
    tile.querySelector('img').alt = file.name;
    gallery.append(tile);
    pictures.push({ name: file.name, tile });
    worker.postMessage({ visit: number, index: pictures.length - 1, file });
  }
  files.value = ''; // or the same files could not be chosen again
  element('announcement').textContent = `Classifying, ${pictures.length} in all`;
  tell();
}

/** @param {any} message of the worker */
function receive({ index, preview, probabilities, known, error }) {
  const picture = Object.assign(visit.pictures[index], { probabilities, known, error });
  const image = picture.tile.querySelector('img');
  if (preview) image.src = URL.createObjectURL(preview);
  else image.remove();
  visit.done++;
  show(picture);
  tell();
  if (visit.done === visit.pictures.length) element('announcement').textContent = status.textContent;
}

/** @param {Picture} picture */
function show({ tile, name, probabilities, known, error }) {
  const label = tile.querySelector('.label');
  tile.classList.toggle('error', Boolean(error));
  tile.classList.toggle('unknown', known === false);
  if (error) label.textContent = error;
  if (!probabilities) return;
  const top = topLabels(probabilities, model.labels, Number(topK.value));
  label.textContent = known === false ? `${top[0].label}? unlike the training images` : top[0].label;
  tile.querySelector('img').alt = `${name}: ${label.textContent}`;
  tile.querySelector('.bars').replaceChildren(
    ...top.map(each => {
      const bar = item(each.label);
      const share = document.createElement('span');
      share.textContent = percent(each.probability);
      bar.style.setProperty('--share', share.textContent);
      bar.append(' ', share);
      return bar;
    }),
  );
}

/** @param {number} fraction */
const percent = fraction => `${(100 * fraction).toFixed(1)}%`;

/** Says how many pictures are done, how fast, and how long the others will take. */
function tell() {
  const { pictures, done, began, doneBefore } = visit;
  const left = pictures.length - done;
  progress.hidden = !left;
  [progress.max, progress.value] = [Math.max(1, pictures.length), done];
  element('csv').disabled = element('clear').disabled = !pictures.length;
  const unknown = pictures.filter(picture => picture.known === false).length;
  const unreadable = pictures.filter(picture => picture.error).length;
  const perSecond = ((done - doneBefore) * 1000) / (performance.now() - began);
  const parts = [
    pictures.length && `${done} of ${pictures.length} classified`,
    unknown && `${unknown} unknown`,
    unreadable && `${unreadable} unreadable`,
    done > doneBefore && `${perSecond.toFixed(1)} per second`,
    left && done > doneBefore && `${Math.ceil(left / perSecond)} s left`,
  ];
  status.textContent = parts.filter(Boolean).join(' · ');
}

function clear() {
  for (const image of gallery.querySelectorAll('img')) URL.revokeObjectURL(image.src);
  visit = newVisit(visit.number + 1);
  worker.postMessage({ visit: visit.number });
  gallery.replaceChildren();
  tell();
}

/** @param {boolean | null | undefined} known */
const inPython = known => (known === true ? 'True' : known === false ? 'False' : '');

/** A file with the columns of the API's /classify_gallery, a row for each picture that is done. */
function downloadCsv() {
  const k = Number(topK.value);
  const ranks = Array.from({ length: k }, (_, i) => i + 1);
  const header = ranks.flatMap(rank => [`label_${rank}`, `probability_${rank}`]);
  let text = csvRow(['index', 'file', 'status', 'known', ...header, 'error']);
  visit.pictures.forEach(({ name, probabilities, known, error }, index) => {
    if (!probabilities && !error) return;
    const top = probabilities
      ? topLabels(probabilities, model.labels, k).flatMap(each => [each.label, each.probability.toFixed(6)])
      : ranks.flatMap(() => ['', '']);
    text += csvRow([index, name, error ? 'error' : 'ok', inPython(known), ...top, error ?? '']);
  });
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob(['\ufeff', text], { type: 'text/csv' }));
  link.download = 'predictions.csv';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

start().catch(error => fail(error.message));
