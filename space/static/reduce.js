/** Large pictures are drawn smaller before they are sent: the models see a few hundred pixels of a phone's thousands. */

const LARGE = 1e6; // bytes; a smaller file is sent as it is
const AT_ONCE = 4; // pictures that are drawn at the same time: each takes four bytes a pixel

/** @param {File} file */
export function isLarge(file) {
  return file.size >= LARGE;
}

/**
 * The size of a picture whose shorter side is reduced to `side` pixels; smaller pictures keep theirs.
 * @param {number} width in pixels
 * @param {number} height in pixels
 * @param {number} side in pixels
 * @returns {[number, number]} width and height
 */
export function reducedSize(width, height, side) {
  const scale = Math.min(1, side / Math.min(width, height));
  return [Math.round(width * scale), Math.round(height * scale)];
}

/**
 * The picture as a smaller JPEG, upright and on white where it is transparent, as the server would show it to the
 * models. What the browser can't draw (HEIC in most) is returned as it is.
 * @param {File} file
 * @param {number} side length of the shorter side, in pixels
 * @returns {Promise<File>}
 */
export async function reduce(file, side) {
  try {
    const whole = await createImageBitmap(file);
    const [width, height] = reducedSize(whole.width, whole.height, side);
    const small = await createImageBitmap(whole, { resizeWidth: width, resizeHeight: height, resizeQuality: 'high' });
    whole.close();
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext('2d');
    context.fillStyle = 'white';
    context.fillRect(0, 0, width, height);
    context.drawImage(small, 0, 0);
    const blob = await canvas.convertToBlob({ type: 'image/jpeg', quality: 0.92 });
    return new File([blob], file.name, { type: 'image/jpeg' });
  } catch {
    return file;
  }
}

/**
 * Applies an asynchronous function to each item, to a few at the same time.
 * @template T, R
 * @param {T[]} items
 * @param {(item: T) => Promise<R>} work
 * @param {object} options
 * @param {AbortSignal} options.signal once it is aborted, no more items are begun
 * @param {() => void} options.onDone called after each item
 * @returns {Promise<R[]>} the results in the order of the items
 */
export async function mapSome(items, work, { signal, onDone }) {
  const results = /** @type {R[]} */ ([]);
  let next = 0;
  async function worker() {
    while (!signal.aborted && next < items.length) {
      const position = next++;
      results[position] = await work(items[position]);
      onDone();
    }
  }
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  return results;
}
