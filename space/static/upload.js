/**
 * More ways to choose pictures than gradio's file component has: a folder, chosen or dropped; pasted pictures; the
 * webcam. All of them hand their files to that component, so that there is one upload and one event in Python.
 *
 * Large pictures are made smaller first, and too many or too large files are left out, because gradio would refuse all
 * of them. Uploads wait for each other: the file component has no input element while it uploads.
 */

import { filesIn, isHidden } from './folders.js';
import { isLarge, mapSome, reduce } from './reduce.js';
import { closeWebcam, hasWebcam, openWebcam, takePicture } from './webcam.js';

const POLL_MS = 200; // between two looks for the file component's input

/** Tasks that run one after the other, whether or not the one before failed. */
export class Queue {
  /** @type {Promise<unknown>} */
  #last = Promise.resolve();

  /**
   * @template T
   * @param {() => Promise<T>} task
   * @returns {Promise<T>} settles as the task does
   */
  add(task) {
    const result = this.#last.then(task);
    this.#last = result.catch(() => {});
    return result;
  }
}

/**
 * Makes the buttons of upload.html work, and takes over what is chosen, dropped and pasted anywhere on the page.
 *
 * `props`: `max_files` of one upload; `max_bytes` of a file; `reduce_to`, the pixels to which the shorter side of a large
 * picture is reduced, 0 to send all pictures as they are.
 *
 * Triggers `too_many` with `{count}` for more than `max_files`, `too_large` with `{names}` for files above `max_bytes`,
 * `unreadable` with `{name, count}` for dropped files that can't be read, and `no_webcam` with `{reason}` without a webcam.
 * @param {import('./gallery.js').Component} component
 */
export function mount({ element, props, trigger }) {
  const queue = new Queue();
  const dialog = element.querySelector('dialog');
  const progress = /** @type {HTMLElement} */ (element.querySelector('.smaller'));
  const folder = newFolderInput();
  let cancelling = new AbortController();

  /** @param {File[]} files */
  function deliver(files) {
    if (files.length) queue.add(() => send(files));
  }

  /** @param {File[]} files */
  async function send(files) {
    cancelling = new AbortController();
    const { signal } = cancelling;
    const smaller = await reduceAll(files.slice(0, props.max_files), signal);
    const input = await fileInput();
    input.value = ''; // or the same files could not be chosen again after a cancel
    if (signal.aborted) return;
    if (files.length > props.max_files) trigger('too_many', { count: files.length });
    const tooLarge = smaller.filter(file => file.size > props.max_bytes);
    if (tooLarge.length) trigger('too_large', { names: tooLarge.map(file => file.name) });
    const transfer = new DataTransfer();
    for (const file of smaller) if (file.size <= props.max_bytes) transfer.items.add(file);
    if (!transfer.files.length) return;
    input.files = transfer.files;
    input.dispatchEvent(new CustomEvent('change', { detail: { isDelivered: true } }));
    await pause(); // until the input is gone
  }

  /**
   * @param {File[]} files
   * @param {AbortSignal} signal
   */
  async function reduceAll(files, signal) {
    if (!props.reduce_to || !files.some(isLarge)) return files;
    const bar = progress.querySelector('progress');
    [bar.max, bar.value, progress.hidden] = [files.length, 0, false];
    const onDone = () => bar.value++;
    const smaller = await mapSome(files, async file => (isLarge(file) ? reduce(file, props.reduce_to) : file), {
      signal,
      onDone,
    });
    progress.hidden = true;
    return smaller;
  }

  /** @type {Record<string, () => unknown>} what each button of upload.html does, by its data-action */
  const actions = {
    folder: () => folder.click(),
    cancel: () => cancelling.abort(),
    camera: () => openWebcam(dialog).catch(error => trigger('no_webcam', { reason: error.message })),
    close: () => closeWebcam(dialog),
    shoot: async () => {
      const file = await takePicture(dialog);
      if (!file) return;
      closeWebcam(dialog);
      deliver([file]);
    },
  };

  element.addEventListener('click', event => {
    const button = /** @type {HTMLElement | null} */ (/** @type {Element} */ (event.target).closest('[data-action]'));
    if (button) actions[button.dataset.action]();
  });
  dialog.addEventListener('cancel', () => closeWebcam(dialog)); // the Escape key
  folder.addEventListener('change', () => {
    deliver([...folder.files].filter(file => !isHidden(file)));
    folder.value = '';
  });

  // Captured, so that gradio's component never sees what was not prepared here
  document.addEventListener('change', onChange, true);
  document.addEventListener('drop', onDrop, true);
  document.addEventListener('dragover', event => {
    if (event.dataTransfer.types.includes('Files')) event.preventDefault();
  });
  document.addEventListener('paste', event => deliver([...event.clipboardData.files]));

  /** @param {Event} event */
  function onChange(event) {
    if (event.target !== findInput() || /** @type {CustomEvent} */ (event).detail?.isDelivered) return;
    event.stopImmediatePropagation();
    deliver([...findInput().files]);
  }

  /** @param {DragEvent} event */
  async function onDrop(event) {
    const items = [...event.dataTransfer.items].filter(item => item.kind === 'file');
    if (!items.length) return;
    event.preventDefault();
    event.stopPropagation();
    event.target.dispatchEvent(new DragEvent('dragleave', { bubbles: true })); // or it would stay highlighted
    /** @type {string[]} */
    const unreadable = [];
    // Entries and files are to be had only until this function waits for the first time
    const found = items.map(item => {
      const entry = item.webkitGetAsEntry?.();
      return entry?.isDirectory ? filesIn(entry, unreadable) : [item.getAsFile()];
    });
    deliver((await Promise.all(found)).flat());
    if (unreadable.length) trigger('unreadable', { name: unreadable[0], count: unreadable.length });
  }

  for (const button of element.querySelectorAll('button')) button.disabled = false;
  /** @type {HTMLElement} */ (element.querySelector('[data-action=camera]')).hidden = !hasWebcam();
}

/** @returns {HTMLInputElement | null} of gradio's file component; null while it uploads */
function findInput() {
  return document.querySelector('#files input[type=file]');
}

async function fileInput() {
  for (;;) {
    const input = findInput();
    if (input) return input;
    await pause();
  }
}

function newFolderInput() {
  const input = document.createElement('input');
  input.type = 'file';
  input.webkitdirectory = true;
  return input;
}

function pause() {
  return new Promise(resolve => setTimeout(resolve, POLL_MS));
}
