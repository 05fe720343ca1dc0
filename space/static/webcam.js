/** The webcam in a dialog. */

/** Whether the browser has a webcam to offer: it needs a page served over https, or from this machine. */
export const hasWebcam = () => Boolean(navigator.mediaDevices?.getUserMedia);

/**
 * Shows what the webcam sees.
 * @param {HTMLDialogElement} dialog
 * @throws {DOMException} if there is no webcam, or the visitor doesn't allow its use
 */
export async function openWebcam(dialog) {
  dialog.querySelector('video').srcObject = await navigator.mediaDevices.getUserMedia({
    video: { facingMode: 'environment' },
  });
  dialog.showModal();
}

/** @param {HTMLDialogElement} dialog */
export function closeWebcam(dialog) {
  const video = dialog.querySelector('video');
  const stream = /** @type {MediaStream | null} */ (video.srcObject);
  for (const track of stream?.getTracks() ?? []) track.stop();
  video.srcObject = null;
  dialog.close();
}

/**
 * What the webcam sees now, as a file.
 * @param {HTMLDialogElement} dialog
 * @returns {Promise<File | undefined>} undefined until the webcam has sent its first picture
 */
export async function takePicture(dialog) {
  const video = dialog.querySelector('video');
  if (!video.videoWidth) return undefined;
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext('2d').drawImage(video, 0, 0);
  const blob = await canvas.convertToBlob({ type: 'image/jpeg', quality: 0.92 });
  return new File([blob], 'webcam.jpg', { type: 'image/jpeg' });
}
