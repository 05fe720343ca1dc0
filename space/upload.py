"""More ways in than gradio's file component has: a folder, chosen or dropped; pasted pictures; the webcam; and not too
many.

All of them hand files to that component, so that there is one upload, and one event. Before that, large pictures are
drawn smaller by the browser, upright: the models see a few hundred pixels of a phone's thousands. What it can't draw
(HEIC in most) goes up whole, unless it is too large. What comes while others are sent or classified waits for that: the
component has no input meanwhile, and a page has one bar for how far it is.
"""

import gradio as gr

from classifier.images.workers import MAX_BYTES
from space import validation

HTML = """
<div class="ways">
  <button type="button" data-way="folder">Choose a folder</button>
  <button type="button" data-way="camera" hidden>Webcam</button>
  <span>or paste a picture</span>
</div>
<div class="smaller" hidden>
  <label>Making large pictures smaller, before they are sent <progress></progress></label>
  <button type="button" data-way="cancel">Cancel</button>
</div>
<dialog aria-label="Webcam">
  <video autoplay playsinline muted></video>
  <div>
    <button type="button" data-way="shoot">Take the picture</button>
    <button type="button" data-way="close">Close</button>
  </div>
</dialog>
"""
JS = """
const MOST = %d, SIDE = %d, LARGE = 1e6, TOO_LARGE = %d;  // files; pixels of the shorter side, 0 for any; bytes
const input = () => document.querySelector('#files input[type=file]');

const shrink = async file => {
  if (!SIDE || file.size < LARGE) return file;
  try {
    const whole = await createImageBitmap(file), sides = [whole.width, whole.height];
    const [width, height] = sides.map(side => Math.round(side * Math.min(1, SIDE / Math.min(...sides))));
    const small = await createImageBitmap(whole, {resizeWidth: width, resizeHeight: height, resizeQuality: 'high'});
    whole.close();
    const canvas = new OffscreenCanvas(width, height), context = canvas.getContext('2d');
    context.fillStyle = 'white';  // where it is transparent, as the server has it
    context.fillRect(0, 0, width, height);
    context.drawImage(small, 0, 0);
    return new File([await canvas.convertToBlob({type: 'image/jpeg', quality: 0.92})], file.name, {type: 'image/jpeg'});
  } catch {
    return file;
  }
};

const AT_ONCE = 4;  // pictures that are drawn: each takes four bytes a pixel
const smaller = element.querySelector('.smaller'), bar = smaller.querySelector('progress');
const pause = () => new Promise(done => setTimeout(done, 200));
const runs = () => document.querySelector('#progress [role=progressbar]');
const isBusy = () => !input() || runs();
let before = Promise.resolve(), cancelled = 0;
const send = async files => {
  const taken = files.slice(0, MOST), small = [], since = cancelled;
  let next = 0;
  [bar.max, bar.value, smaller.hidden] = [taken.length, 0, !SIDE || taken.every(file => file.size < LARGE)];
  const work = async () => {
    for (let i; since === cancelled && (i = next++) < taken.length; bar.value++) small[i] = await shrink(taken[i]);
  };
  await Promise.all(Array.from({length: AT_ONCE}, work));
  smaller.hidden = true;
  while (isBusy()) await pause();
  input().value = '';  // or the same files could not be chosen again after a cancel
  if (since !== cancelled) return;
  if (files.length > MOST) trigger('too_many', {count: files.length});
  const refused = small.filter(file => file.size > TOO_LARGE), transfer = new DataTransfer();
  if (refused.length) trigger('too_large', {names: refused.map(file => file.name)});  // gradio would refuse all of them
  small.filter(file => file.size <= TOO_LARGE).forEach(file => transfer.items.add(file));
  if (!transfer.files.length) return;
  input().files = transfer.files;
  input().dispatchEvent(Object.assign(new Event('change'), {isDelivered: true}));
  await pause();  // until the input is gone
};
// What an example's click begins, in its turn: until its bar shows, or it was refused
document.inTurn = begin => before = before.then(async () => {
  while (isBusy()) await pause();
  begin();
  let observer;
  await new Promise(done => {
    observer = new MutationObserver(() => { if (runs()) done(); });
    observer.observe(document.querySelector('#working'), {childList: true, subtree: true});
    setTimeout(done, 3000);
  });
  observer.disconnect();
});
const deliver = files => { if (files.length) before = before.then(() => send(files)); };  // one after the other

// Files of a folder and of those in it, without hidden ones
const read = async reader => {
  const entries = [];
  const more = () => new Promise((found, failed) => reader.readEntries(found, failed));
  for (let some; (some = await more()).length;) entries.push(...some);
  return entries;
};
const walk = async (entry, unread) => {
  if (entry.name.startsWith('.')) return [];
  try {
    if (entry.isFile) return [await new Promise((found, failed) => entry.file(found, failed))];
    return (await Promise.all((await read(entry.createReader())).map(each => walk(each, unread)))).flat();
  } catch {  // gone, or not to be read: the others are taken
    unread.push(entry.fullPath);
    return [];
  }
};

const folder = document.createElement('input');
folder.type = 'file';
folder.webkitdirectory = true;
folder.addEventListener('change', () => {
  deliver([...folder.files].filter(file => !file.name.startsWith('.')));
  folder.value = '';
});

document.addEventListener('change', event => {
  if (event.target !== input() || event.isDelivered) return;
  event.stopImmediatePropagation();
  deliver([...event.target.files]);
}, true);
document.addEventListener('dragover', event => { if (event.dataTransfer.types.includes('Files')) event.preventDefault();
}); document.addEventListener('drop', async event => {
  const items = [...event.dataTransfer.items].filter(item => item.kind === 'file');
  if (!items.length) return;
  event.preventDefault();
  event.stopPropagation();
  event.target.dispatchEvent(new DragEvent('dragleave', {bubbles: true}));  // or it would stay highlighted
  const unread = [], found = items.map(item => {  // before this function waits: then entries and files are gone
    const entry = item.webkitGetAsEntry?.();
    return entry?.isDirectory ? walk(entry, unread) : [item.getAsFile()];
  });
  deliver((await Promise.all(found)).flat());
  if (unread.length) trigger('unreadable', {name: unread[0], count: unread.length});
}, true);
document.addEventListener('paste', event => deliver([...event.clipboardData.files]));

const dialog = element.querySelector('dialog'), video = element.querySelector('video');
const close = () => { video.srcObject?.getTracks().forEach(track => track.stop()); video.srcObject = null;
dialog.close(); }; dialog.addEventListener('cancel', close); element.querySelector('[data-way=camera]').hidden =
!navigator.mediaDevices?.getUserMedia; element.addEventListener('click', async event => {
  const way = event.target.closest('[data-way]')?.dataset.way;
  if (way === 'folder') folder.click();
  if (way === 'cancel') cancelled++;
  if (way === 'close') close();
  if (way === 'camera') {
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment'}});
      dialog.showModal();
    } catch (error) {
      trigger('no_webcam', {reason: error.message});
    }
  }
  if (way === 'shoot' && video.videoWidth) {
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext('2d').drawImage(video, 0, 0);
    close();
    canvas.toBlob(blob => deliver([new File([blob], 'webcam.jpg', {type: 'image/jpeg'})]), 'image/jpeg', 0.92);
  }
});
"""


def ways(reduce_to: int | None) -> gr.HTML:
    """Buttons for a folder and the webcam.

    It triggers `crowd` where there are more files than are taken, `refused` with the names of those that are too large,
    `unread` for what the browser can't read, and `blind` where there is no webcam.

    `reduce_to` of each model: large pictures are drawn no smaller than any of them needs.
    """
    return gr.HTML(
        HTML, js_on_load=JS % (validation.MAX_FILES, reduce_to or 0, MAX_BYTES), elem_id="ways", apply_default_css=False
    )
