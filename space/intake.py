"""More ways in than gradio's file component has: a folder, chosen or dropped; pasted pictures; the webcam; and not too many.

All of them hand files to that component, so that there is one upload, and one event.
"""

import gradio as gr

from space import guard

HTML = """
<div class="ways">
  <button type="button" data-way="folder">Choose a folder</button>
  <button type="button" data-way="camera" hidden>Webcam</button>
  <span>or paste a picture</span>
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
const MOST = %d;
const input = () => document.querySelector('#files input[type=file]');
const deliver = files => {
  if (!files.length || !input()) return;
  const transfer = new DataTransfer();
  files.slice(0, MOST).forEach(file => transfer.items.add(file));
  input().files = transfer.files;
  input().dispatchEvent(new Event('change'));
  if (files.length > MOST) trigger('crowd', {count: files.length});
};

// Files of a folder and of those in it, without hidden ones
const read = async reader => {
  const entries = [];
  const more = () => new Promise((found, failed) => reader.readEntries(found, failed));
  for (let some; (some = await more()).length;) entries.push(...some);
  return entries;
};
const walk = async entry => {
  if (entry.name.startsWith('.')) return [];
  if (entry.isFile) return [await new Promise((found, failed) => entry.file(found, failed))];
  return (await Promise.all((await read(entry.createReader())).map(walk))).flat();
};

const folder = document.createElement('input');
folder.type = 'file';
folder.webkitdirectory = true;
folder.addEventListener('change', () => {
  deliver([...folder.files].filter(file => !file.name.startsWith('.')));
  folder.value = '';
});

document.addEventListener('change', event => {
  if (event.target !== input() || event.target.files.length <= MOST) return;
  event.stopImmediatePropagation();
  deliver([...event.target.files]);
}, true);
document.addEventListener('dragover', event => { if (event.dataTransfer.types.includes('Files')) event.preventDefault(); });
document.addEventListener('drop', async event => {
  const items = [...event.dataTransfer.items].filter(item => item.kind === 'file');
  if (!items.length) return;
  event.preventDefault();
  event.stopPropagation();
  event.target.dispatchEvent(new DragEvent('dragleave', {bubbles: true}));  // or it would stay highlighted
  const found = items.map(item => {  // before this function waits: then entries and files are gone
    const entry = item.webkitGetAsEntry?.();
    return entry?.isDirectory ? walk(entry) : [item.getAsFile()];
  });
  deliver((await Promise.all(found)).flat());
}, true);
document.addEventListener('paste', event => deliver([...event.clipboardData.files]));

const dialog = element.querySelector('dialog'), video = element.querySelector('video');
const close = () => { video.srcObject?.getTracks().forEach(track => track.stop()); video.srcObject = null; dialog.close(); };
dialog.addEventListener('cancel', close);
element.querySelector('[data-way=camera]').hidden = !navigator.mediaDevices?.getUserMedia;
element.addEventListener('click', async event => {
  const way = event.target.closest('[data-way]')?.dataset.way;
  if (way === 'folder') folder.click();
  if (way === 'close') close();
  if (way === 'camera') {
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment'}});
      dialog.showModal();
    } catch (error) {
      trigger('blind', {reason: error.message});
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


def ways() -> gr.HTML:
    """Buttons for a folder and the webcam; `crowd` tells of more files than are taken, `blind` why there is no webcam."""
    return gr.HTML(HTML, js_on_load=JS % guard.MAX_FILES, elem_id="ways", apply_default_css=False)


def warn_crowd(event: gr.EventData) -> None:
    """Says that not all files are taken."""
    gr.Warning(f"{event.count:,} files: the first {guard.MAX_FILES} are taken.")


def warn_blind(event: gr.EventData) -> None:
    """Says why there is no picture of the webcam."""
    gr.Warning(f"The webcam can't be used: {event.reason}")
